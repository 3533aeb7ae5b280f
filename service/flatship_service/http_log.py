"""What aiohttp has to say, for the daemon's log."""

import logging


class StrangersLog(logging.Logger):
    """aiohttp's log without a stack trace for each stranger that does not speak HTTP.

    Whoever serves logs faults of its own where it answers them: those that come here are lost.
    """

    def handle(self, record: logging.LogRecord) -> None:
        """Log what is no peer's doing."""
        if record.levelno >= logging.WARNING and not record.exc_info:
            logging.getLogger().handle(record)
