"""Log lines: ``timestamp=… level=… event=… key=value``, or JSON, on standard error.

Whatever a value holds, it stays inside its line and never reaches the
terminal as an escape sequence.
"""

import io
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import structlog

from flatship_service.printable import printable

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[Mapping[Level, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_METHODS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}
_BARE: Final = re.compile(r"[A-Za-z0-9_.:/@+,*%-]+", re.ASCII)
_FIRST: Final = ("timestamp", "level", "event")


def configure(
    level: Level = "info", *, as_json: bool = False, stream: TextIO | None = None
) -> None:
    """Set up structlog and, through it, the standard library's loggers.

    Args:
        level: The least that is worth a line.
        as_json: One JSON object a line in place of ``key=value``.
        stream: Standard error when not given.
    """
    set_level(level)
    structlog.configure(
        processors=[
            _drop_what_is_not_worth_it,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render_json if as_json else render_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(
            _Expendable(stream if stream is not None else sys.stderr)
        ),
        cache_logger_on_first_use=False,
    )
    # Libraries log at length about what is normal; their warnings matter.
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


def set_level(level: Level) -> None:
    """Let the least that is worth a line be another, for loggers that are in use, too."""
    _threshold.least = LEVELS[level]


def render_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Render a structlog event as ``key=value`` pairs: time, level and event first."""
    keys = [key for key in _FIRST if key in event] + [key for key in event if key not in _FIRST]
    return " ".join(f"{printable(key)}={_quoted(event[key])}" for key in keys)


def render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Render a structlog event as one line of ASCII JSON."""
    # DEL is the one control character that JSON leaves as it is.
    return json.dumps(dict(event), default=str).replace("\x7f", "\\u007f")


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    if _BARE.fullmatch(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class _Threshold:
    """What ``set_level`` sets."""

    least = LEVELS["info"]


_threshold: Final = _Threshold()


def _drop_what_is_not_worth_it(
    _logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if _METHODS.get(method, logging.INFO) < _threshold.least:
        raise structlog.DropEvent
    return event


class _Expendable(io.StringIO):
    """A stream whose failures cost lines and nothing else, as when its file system is full."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _ToStructlog(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger().log(
                record.levelno,
                record.getMessage(),
                logger=record.name,
                exc_info=record.exc_info,
            )
        except Exception:
            self.handleError(record)
