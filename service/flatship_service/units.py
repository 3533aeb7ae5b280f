"""Sizes, rates and durations as people write them.

``MB`` is 1000 * 1000 bytes, ``MiB`` and the bare letter ``M`` are 1024 * 1024,
as in GNU coreutils, LVM and QEMU. Rates are per second, in bytes (``20MB``,
``20MB/s``) or in bits (``100Mbit``), and bits always count in thousands.
"""

import re
from decimal import Decimal
from typing import Final

SIZE_EXPECTED: Final = "a size such as 512, 20MB, 1.5GiB or 2T"
RATE_EXPECTED: Final = "a rate such as 20MB, 1.5MiB/s or 100Mbit"
DURATION_EXPECTED: Final = "a duration such as 90s, 15m, 1h30m or 1d"

_PREFIXES: Final = "kmgtpe"
_LIMIT: Final = 1 << 63  # what other programs and file formats can hold
_MAX_LENGTH: Final = 40  # characters; beyond that it is not a number that people write
_SECONDS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "w": Decimal(604800),
}

_AMOUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/]*)", re.ASCII)
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*) ?", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` means, rounded to a whole byte.

    Raises:
        ValueError: Not a size, or 8 EiB and more.
    """
    amount, unit = _split(text, SIZE_EXPECTED)
    scale = _byte_scale(unit)
    if scale is None:
        raise ValueError(f"expected {SIZE_EXPECTED}, got {text!r}")
    return _whole(amount * scale, text)


def parse_rate(text: str) -> int:
    """Return the bytes per second that ``text`` means.

    Raises:
        ValueError: Not a rate, or ambiguous: ``Mb`` is read as megabits by
            some and as megabytes by others.
    """
    amount, unit = _split(text, RATE_EXPECTED)
    unit = unit.removesuffix("/s")
    bits = re.fullmatch(rf"([{_PREFIXES}]?)(?:bits?|bps)", unit, re.IGNORECASE)
    if bits:
        return _whole(amount * _power(1000, bits[1]) / 8, text)
    if re.fullmatch(rf"[{_PREFIXES}]?b", unit, re.IGNORECASE) and unit.endswith("b"):
        raise ValueError(
            f"{text!r} may mean bits or bytes: write {unit[:-1]}bit or {unit[:-1]}B instead"
        )
    scale = _byte_scale(unit)
    if scale is None:
        raise ValueError(f"expected {RATE_EXPECTED}, got {text!r}")
    return _whole(amount * scale, text)


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` means; a bare number is seconds.

    Raises:
        ValueError: Not a duration.
    """
    stripped = text.strip()
    parts = list(_DURATION_PART.finditer(stripped))
    covered = "".join(part[0] for part in parts)
    bare = len(parts) == 1 and not parts[0][2]
    known = all(part[2] in _SECONDS for part in parts)
    if not stripped or len(stripped) > _MAX_LENGTH or covered != stripped or not (bare or known):
        raise ValueError(f"expected {DURATION_EXPECTED}, got {text!r}")
    return float(sum(Decimal(part[1]) * _SECONDS[part[2] or "s"] for part in parts))


def format_size(size: int) -> str:
    """Write ``size`` bytes for people: ``512 B``, ``1.5 GiB``."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))


def format_rate(rate: float) -> str:
    """Write ``rate`` bytes per second for people: ``20.0 MB/s``."""
    return _scaled(rate, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s", "EB/s"))


def format_duration(seconds: float) -> str:
    """Write a duration in its two largest units: ``45s``, ``12m 05s``, ``3h 20m``, ``2d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for large, small, of_large, of_small in (
        ("m", "s", 60, 1),
        ("h", "m", 3600, 60),
        ("d", "h", 86400, 3600),
    ):
        if whole < of_large * (24 if large == "h" else 60) or large == "d":
            return f"{whole // of_large}{large} {whole % of_large // of_small:02d}{small}"
    raise AssertionError("the last row takes everything")


def _split(text: str, expected: str) -> tuple[Decimal, str]:
    stripped = text.strip()
    match = _AMOUNT.fullmatch(stripped)
    if match is None or len(stripped) > _MAX_LENGTH:
        raise ValueError(f"expected {expected}, got {text!r}")
    return Decimal(match[1]), match[2]


def _byte_scale(unit: str) -> int | None:
    match = re.fullmatch(rf"([{_PREFIXES}]?)(i?b)?", unit, re.IGNORECASE)
    if match is None:
        return None
    prefix, suffix = match[1], (match[2] or "").lower()
    if not prefix:
        return None if suffix == "ib" else 1
    return _power(1000 if suffix == "b" else 1024, prefix)


def _power(base: int, prefix: str) -> int:
    return int(base ** (_PREFIXES.index(prefix.lower()) + 1)) if prefix else 1


def _whole(value: Decimal, text: str) -> int:
    if value >= _LIMIT:
        raise ValueError(f"{text!r} is more than 8 EiB")
    return round(value)


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    step = 0
    while step < len(units) - 1 and round(value, 1) >= base:
        value /= base
        step += 1
    return f"{value:.1f} {units[step]}" if step else f"{value:.0f} {units[0]}"
