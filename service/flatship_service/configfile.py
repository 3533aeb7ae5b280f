"""Configuration: a TOML file and the fragments beside it, checked as one.

``receiver.toml`` is joined by ``receiver.conf.d/*.toml`` in the order of their
names. Tables merge; of anything else the last one counts.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from flatship_service.congestion import check_congestion_control
from flatship_service.errors import ConfigError
from flatship_service.units import parse_duration, parse_rate, parse_size

Table = dict[str, Any]
KeyPath = tuple[str, ...]
T = TypeVar("T", bound=msgspec.Struct)


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


def _parse_limit(text: str) -> float:
    return float("inf") if text == "unlimited" else parse_rate(text)


_WRITTEN: Final[Mapping[type, Callable[[str], Any]]] = {
    Size: parse_size,
    Rate: parse_rate,
    Limit: _parse_limit,
    Duration: parse_duration,
    Path: Path,
    CongestionControl: check_congestion_control,
}
_AT: Final = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD: Final = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")


def load(path: Path, kind: type[T], *, must_exist: bool) -> T:
    """Read ``path`` and its fragments into ``kind``, a Struct that forbids unknown fields.

    Args:
        path: The main file.
        kind: What can be set, with types and defaults.
        must_exist: False for a default path that need not be there.

    Raises:
        ConfigError: Names file, key, what was expected and what was found.
    """
    merged: Table = {}
    origins: dict[KeyPath, Path] = {}
    for file in configuration_files(path, must_exist=must_exist):
        try:
            _merge(merged, _read(file), file, origins)
        except RecursionError:
            raise ConfigError(f"{file}: tables or arrays stand in each other too deeply") from None
    try:
        return msgspec.convert(merged, kind, dec_hook=_convert)
    except msgspec.ValidationError as error:
        raise _explained(str(error), path, origins) from None


def configuration_files(path: Path, *, must_exist: bool) -> list[Path]:
    """The files that make up the configuration, in the order in which they count.

    Raises:
        ConfigError: The main file is missing and must exist.
    """
    if must_exist and not path.exists():
        raise ConfigError(f"configuration file {path} does not exist")
    main = [path] if path.exists() else []
    fragments = path.with_name(f"{path.stem}.conf.d").glob("*.toml")
    return main + sorted(fragments, key=lambda fragment: fragment.name)


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    except ValueError as error:  # TOMLDecodeError is one; a number of 5000 digits is another
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _merge(
    into: Table, table: Table, file: Path, origins: dict[KeyPath, Path], at: KeyPath = ()
) -> None:
    for key, value in table.items():
        origins[(*at, key)] = file
        if isinstance(value, dict):
            inner = into.get(key)
            if not isinstance(inner, dict):
                inner = into[key] = {}
            _merge(inner, value, file, origins, (*at, key))
        else:
            into[key] = value


def _convert(kind: type, value: object) -> object:
    parse = _WRITTEN.get(kind)
    if parse is None:
        raise NotImplementedError(f"no configuration value is a {kind.__name__}")
    if isinstance(value, str):
        return kind(parse(value))
    if (
        kind in (Path, CongestionControl)
        or isinstance(value, bool)
        or not isinstance(value, int | float)
    ):
        raise ValueError(f"Expected a string such as people write, got `{type(value).__name__}`")
    if not value >= 0:
        raise ValueError(f"Expected a number that is not negative, got {value}")
    return kind(value)


def _explained(message: str, path: Path, origins: Mapping[KeyPath, Path]) -> ConfigError:
    """Turn msgspec's message, which knows neither files nor TOML's words, into ours."""
    at = _AT.search(message)
    keys = tuple(re.sub(r"\[[^]]*\]", "", at["path"]).split(".")) if at else ()
    what = _AT.sub("", message)
    field = _FIELD.search(what)
    if field:
        keys = (*keys, field["name"])
        what = "unknown key" if "unknown" in what else "required, and missing"
    file = next(
        (origins[keys[:depth]] for depth in range(len(keys), 0, -1) if keys[:depth] in origins),
        path,
    )
    what = what[:1].lower() + what[1:].replace("`object`", "table").replace("`", "")
    return ConfigError(f"{file}: {'.'.join(keys)}: {what}")
