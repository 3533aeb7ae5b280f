"""The commands of flatship-sender, a module for those that belong together."""
