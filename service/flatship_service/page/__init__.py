"""The read-only page of a daemon: what it shows, how it is kept up to date, its files."""
