"""Configuration: a TOML file and the fragments beside it, checked as one.

``receiver.toml`` is joined by ``receiver.conf.d/*.toml`` in the order of their
names. Tables merge; of anything else the last one counts. All that is wrong is
found at once, each with its file and line.
"""

import contextlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from flatship_service.configvalues import Faults, Reading
from flatship_service.errors import ConfigError
from flatship_service.toml_lines import KeyPath, key_lines
from flatship_service.toml_text import dotted
from flatship_service.written import Parsers

Table = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)

_PLACE: Final = re.compile(
    r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|(?P<end>end).*)\)$"
)
_TWICE: Final = re.compile(r"Cannot (overwrite|declare|mutate)|Duplicate inline table key")
TOLD: Final = 3  # problems in one message
MAX_FILE: Final = 1 << 20  # bytes; people do not write more


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is said: a file, and a line from 1 if it is known."""

    file: Path
    line: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, under which key, what was expected and what was found."""

    place: Place
    key: KeyPath
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.place), dotted(self.key), self.what)))


class WrongConfiguration(ConfigError):
    """A configuration has problems, at least one; the message tells the first of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        told = "; ".join(map(str, problems[:TOLD]))
        more = len(problems) - TOLD
        super().__init__(f"{told}; and {more} more" if more > 0 else told)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A configuration that was read.

    Args:
        value: What it says, with defaults.
        table: What the files say, merged, as TOML has it.
        places: Where each key of ``table`` was set.
        main: The main file, which need not be there.
        files: Those that were read, in the order in which they count.
    """

    value: T
    table: Table
    places: Mapping[KeyPath, Place]
    main: Path
    files: Sequence[Path]

    def problems(self, faults: Faults) -> list[Problem]:
        """What is wrong with keys, with the places where they are set."""
        return _placed(faults, self.places, self.main)


def load(
    path: Path, kind: type[T], *, must_exist: bool, parsers: Parsers | None = None
) -> Loaded[T]:
    """Read ``path`` and its fragments into ``kind``, a Struct that forbids unknown fields.

    Args:
        path: The main file.
        kind: What can be set, with types and defaults.
        must_exist: False for a default path that need not be there.
        parsers: Types that are written as text, beside those of ``written``.

    Raises:
        WrongConfiguration: Names file, line, key, what was expected and what was found.
    """
    merged: Table = {}
    places: dict[KeyPath, Place] = {}
    problems: list[Problem] = []
    files = configuration_files(path, must_exist=must_exist)
    for file in files:
        try:
            table, lines = _read(file)
            _merge(merged, table, file, lines, places)
        except RecursionError:
            what = "tables or arrays stand in each other too deeply"
            problems.append(Problem(Place(file), (), what))
        except WrongConfiguration as error:
            problems.extend(error.problems)
    reading = Reading(parsers or {}, complete=not problems)
    value = reading.struct(kind, merged)
    problems.extend(_placed(reading.faults, places, path))
    if problems:
        raise WrongConfiguration(problems)
    return Loaded(value, merged, places, path, files)


def configuration_files(path: Path, *, must_exist: bool) -> list[Path]:
    """The files that make up the configuration, in the order in which they count.

    Raises:
        WrongConfiguration: The main file is missing and must exist, or one cannot be looked for.
    """
    folder = path.with_name(f"{path.stem}.conf.d")
    try:
        exists = path.exists()
        fragments = sorted(each for each in folder.iterdir() if each.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        fragments = []
    except OSError as error:
        raise _whole(Path(error.filename or path), error.strerror or str(error)) from error
    if must_exist and not exists:
        raise ConfigError(f"configuration file {path} does not exist")
    return [path, *fragments] if exists else fragments


def _read(path: Path) -> tuple[Table, Mapping[KeyPath, int]]:
    content = b""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise _whole(path, f"expected at most {MAX_FILE >> 20} MiB; this is no configuration")
        text = content.decode("utf-8").replace("\r\n", "\n")
        return tomllib.loads(text), key_lines(text)
    except OSError as error:
        raise _whole(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8 at byte {error.start}"
        raise WrongConfiguration([Problem(Place(path, line), (), what)]) from error
    except ValueError as error:  # TOMLDecodeError is one; a number of 5000 digits is another
        raise WrongConfiguration([_not_toml(path, content, str(error))]) from error


def _whole(path: Path, what: str) -> WrongConfiguration:
    return WrongConfiguration([Problem(Place(path), (), what)])


def _not_toml(path: Path, content: bytes, message: str) -> Problem:
    """What tomllib says, which names a line in words of its own."""
    place = _PLACE.search(message)
    line = column = None
    if place is not None:
        column = place["column"]
        line = int(place["line"]) if place["line"] else content.rstrip().count(b"\n") + 1
    what = _PLACE.sub("", message)
    if _TWICE.match(what):
        what = "this key or table is set twice in this file; keep one of the two"
    at = f" at column {column}" if column else ""
    return Problem(Place(path, line), (), f"not TOML{at}: {what}")


def _merge(
    into: Table,
    table: Table,
    file: Path,
    lines: Mapping[KeyPath, int],
    places: dict[KeyPath, Place],
    at: KeyPath = (),
) -> None:
    for key, value in table.items():
        path = (*at, key)
        if key in into and not (isinstance(value, dict) and isinstance(into[key], dict)):
            for gone in [each for each in places if each[: len(path)] == path]:
                del places[gone]
        places[path] = Place(file, lines.get(path))
        if isinstance(value, dict):
            inner = into.get(key)
            if not isinstance(inner, dict):
                inner = into[key] = {}
            _merge(inner, value, file, lines, places, path)
        else:
            into[key] = value
            for inside in (
                lines if isinstance(value, list) else ()
            ):  # its items, and what is in them
                if inside[: len(path)] == path:
                    places[inside] = Place(file, lines[inside])


def _placed(faults: Faults, places: Mapping[KeyPath, Place], main: Path) -> list[Problem]:
    """Faults with the place of their key, or of what it is missing in."""
    return [Problem(_place(key, places, main), key, what) for key, what in faults]


def _place(key: KeyPath, places: Mapping[KeyPath, Place], main: Path) -> Place:
    for depth in range(len(key), 0, -1):
        with contextlib.suppress(KeyError):
            return places[key[:depth]]
    return Place(main)
