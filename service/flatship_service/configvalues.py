"""From what TOML has to the Structs of a configuration; everything that is wrong is found.

A Struct may check itself: ``__post_init__`` raises ValueError, or ``WrongValues`` to name keys.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from flatship_service.toml_lines import KeyPath
from flatship_service.written import WRITTEN, Parsers, parse_written

Faults = Sequence[tuple[KeyPath, str]]
T = TypeVar("T", bound=msgspec.Struct)

MAX_FAULTS: Final = 100  # told at once; who made more will not read them
_WRONG: Final = object()
_AT: Final = re.compile(r" - at `[^`]*`$")


class WrongValues(ValueError):
    """What a Struct finds wrong with itself.

    Args:
        faults: Keys below it, and what was expected of them and found.
    """

    def __init__(self, faults: Faults) -> None:
        super().__init__("; ".join(what for _, what in faults))
        self.faults = faults


class Reading:
    """Reads values, and collects what is wrong with them.

    Args:
        parsers: Types that are written as text, beside those of ``written``.
        complete: False if a part could not be read, so that keys may be missing through no
            fault of their own.
    """

    def __init__(self, parsers: Parsers, *, complete: bool = True) -> None:
        self.faults: list[tuple[KeyPath, str]] = []
        self._parsers = {**WRITTEN, **parsers}
        self._complete = complete

    def struct(self, kind: type[T], found: object, at: KeyPath = ()) -> T:
        """Return the Struct that ``found`` describes; meaningless if there are ``faults``."""
        return cast(T, self._struct(kind, found, at))

    def _struct(self, kind: type[msgspec.Struct], found: object, at: KeyPath) -> object:
        if not isinstance(found, dict):
            return self._fault(at, f"expected table, got {_named(found)}")
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, object] = {}
        for key, value in found.items():
            if key not in fields:
                self._fault((*at, key), _unknown(key, list(fields)))
            else:
                field = fields[key]
                values[field.name] = self._value(field.type, value, (*at, key))
        missing = [name for name, field in fields.items() if field.required and name not in found]
        for name in missing if self._complete else ():
            self._fault((*at, name), "required, and missing")
        if missing or len(values) < len(found) or any(each is _WRONG for each in values.values()):
            return _WRONG
        try:
            return kind(**values)
        except WrongValues as error:
            for key, what in error.faults:
                self._fault((*at, *key), what)
        except ValueError as error:
            self._fault(at, str(error))
        return _WRONG

    def _value(self, kind: Any, found: object, at: KeyPath) -> object:
        arguments = get_args(kind)
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (each for each in arguments if each is not NoneType)  # TOML has no null
            return self._value(kind, found, at)
        if get_origin(kind) is dict:
            if not isinstance(found, dict):
                return self._fault(at, f"expected table, got {_named(found)}")
            return self._table(arguments[0], arguments[1], found, at)
        if get_origin(kind) is list:
            if not isinstance(found, list):
                return self._fault(at, f"expected array, got {_named(found)}")
            return _whole([self._value(arguments[0], v, (*at, n)) for n, v in enumerate(found)])
        if get_origin(kind) is Literal:
            if found not in arguments:
                listed = ", ".join(arguments)
                return self._fault(at, f"expected one of: {listed}; got {_shown(found)}")
            return found
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, found, at)
        try:
            if kind in self._parsers:
                return parse_written(kind, found, self._parsers[kind])
            return msgspec.convert(found, kind)
        except msgspec.ValidationError as error:
            what = _AT.sub("", str(error)).replace("`", "").replace("object", "table")
            got = "" if ", got " in what else f", got {_shown(found)}"
            return self._fault(at, what[:1].lower() + what[1:] + got)
        except ValueError as error:
            return self._fault(at, str(error))

    def _table(self, names: Any, kind: Any, found: dict[str, object], at: KeyPath) -> object:
        values: dict[object, object] = {}
        for key, value in found.items():
            name = key if names is str else self._value(names, key, (*at, key))
            values[name] = self._value(kind, value, (*at, key))
        return _WRONG if _WRONG in values else _whole(values)

    def _fault(self, at: KeyPath, what: str) -> object:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append((at, what))
        return _WRONG


def _whole(values: Any) -> object:
    """The values, unless one of them is wrong."""
    each = values.values() if isinstance(values, dict) else values
    return _WRONG if any(value is _WRONG for value in each) else values


def _unknown(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return (
        f"unknown key; did you mean {near[0]}?"
        if near
        else (f"unknown key; expected one of: {', '.join(known)}")
    )


def _shown(found: object) -> str:
    """Text and numbers as they stand, of anything else the kind."""
    return repr(found) if isinstance(found, str | int | float) else _named(found)


def _named(found: object) -> str:
    return {"dict": "table", "list": "array"}.get(type(found).__name__, type(found).__name__)
