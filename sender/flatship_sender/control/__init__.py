"""The daemon's control interface: HTTP on a Unix socket, and those who speak it."""
