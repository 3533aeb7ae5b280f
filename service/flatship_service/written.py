"""Values of a configuration as people write them, and the types that stand for them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from flatship_service.congestion import check_congestion_control
from flatship_service.units import parse_duration, parse_rate, parse_size

UNLIMITED: Final = "unlimited"


class Size(int):
    """Bytes; written as a number or as ``20MB``, ``1.5GiB``."""


class Rate(int):
    """Bytes per second; written as a number or as ``20MB``, ``100Mbit``."""


class Duration(float):
    """Seconds; written as a number or as ``15m``, ``1h30m``."""


class Limit(float):
    """Bytes per second, infinite for none; written as a Rate or as ``unlimited``."""


class CongestionControl(str):
    """The name of a congestion control that the kernel offers."""

    __slots__ = ()


Parsers = Mapping[type, Callable[[str], Any]]


def parse_written(kind: type, found: object, parse: Callable[[str], Any]) -> object:
    """Turn what a configuration says into a value of ``kind``.

    Args:
        kind: One of ``WRITTEN``, or a type with a parser of its own.
        found: As TOML has it.
        parse: Reads text.

    Raises:
        ValueError: Says what was expected, and what was found.
    """
    if isinstance(found, str):
        value = parse(found)
        return value if isinstance(value, kind) else kind(value)
    if kind not in _NUMBERS or isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"expected a string such as people write, got {type(found).__name__}")
    if not found >= 0:
        raise ValueError(f"expected a number that is not negative, got {found}")
    return kind(found)


def _parse_limit(text: str) -> float:
    return float("inf") if text == UNLIMITED else parse_rate(text)


_NUMBERS: Final = (Size, Rate, Limit, Duration)
WRITTEN: Final[Parsers] = {
    Size: parse_size,
    Rate: parse_rate,
    Limit: _parse_limit,
    Duration: parse_duration,
    Path: Path,
    CongestionControl: check_congestion_control,
}
