"""A configuration as TOML, each value with where it comes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from flatship_service.configfile import Loaded
from flatship_service.printable import printable
from flatship_service.toml_lines import KeyPath
from flatship_service.toml_text import bare_or_quoted, dotted, value_text

DEFAULT: Final = "default"
_COLUMN: Final = 40  # of comments, unless a line is longer


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    origin: str = ""

    def __str__(self) -> str:
        if not self.origin:
            return self.text
        return f"{self.text.ljust(_COLUMN)}  # {self.origin}" if self.text else f"# {self.origin}"


def config_text(loaded: Loaded[Any], *, defaults: bool) -> str:
    """What is in force, as a document that can be read again; a line's comment says why.

    Args:
        loaded: What was read.
        defaults: Also keys that no file sets.
    """
    files = ", ".join(printable(str(file)) for file in loaded.files) or "no file"
    lines = [_Line("", f"read: {files}"), *_Text(loaded, defaults).table(loaded.value, ())]
    return "".join(f"{line}\n" for line in lines)


class _Text:
    def __init__(self, loaded: Loaded[Any], defaults: bool) -> None:
        self._loaded = loaded
        self._defaults = defaults

    def table(self, value: Any, at: KeyPath) -> Iterator[_Line]:
        """Keys first, tables after them: a key below a heading belongs to that."""
        inner: list[tuple[KeyPath, Any]] = []
        for key, each in _items(value):
            path = (*at, key)
            if _is_table(each) or _is_array_of_tables(each):
                inner.append((path, each))
            elif self._defaults or path in self._loaded.places:
                yield self._key(path, each)
        for path, each in inner:
            if isinstance(each, list):
                for number, item in enumerate(each):
                    heading = f"[[{dotted(path)}]]"
                    yield from self._headed(heading, self.table(item, (*path, number)))
            else:
                yield from self._headed(f"[{dotted(path)}]", self.table(each, path))

    def _headed(self, heading: str, below: Iterator[_Line]) -> Sequence[_Line]:
        lines = list(below)
        own = lines and lines[0].text  # or else there is another heading first
        return [_Line(""), _Line(heading), *lines] if own else lines

    def _key(self, path: KeyPath, value: object) -> _Line:
        key = bare_or_quoted(str(path[-1]))
        place = self._loaded.places.get(path)
        if place is not None:  # as it was written, which is what people recognise
            return _Line(f"{key} = {value_text(self._written(path))}", printable(str(place)))
        if value is None:
            return _Line(f"# {key} =", "not set")
        return _Line(f"{key} = {value_text(value)}", DEFAULT)

    def _written(self, path: KeyPath) -> object:
        found: Any = self._loaded.table
        for key in path:
            found = found[key]
        return found


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            yield field.encode_name, getattr(value, field.name)
    else:
        yield from value.items()


def _is_table(value: object) -> bool:
    return isinstance(value, dict | msgspec.Struct)


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))
