"""What a daemon is, whatever it does."""

__version__ = "0.1.0"
