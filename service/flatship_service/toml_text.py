"""Values and keys as TOML writes them."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from math import isinf
from typing import Final

from flatship_service.toml_lines import KeyPath
from flatship_service.written import UNLIMITED, Limit

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_UNSAFE: Final = re.compile(r'["\\]|[^ -~]')
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def dotted(path: KeyPath) -> str:
    """A key with those above it: ``limits.schedule[0].rate``; quoted where TOML wants it."""
    text = ""
    for key in path:
        text += (
            f"[{key}]" if isinstance(key, int) else f"{'.' if text else ''}{bare_or_quoted(key)}"
        )
    return text


def bare_or_quoted(key: str) -> str:
    """A single key."""
    return key if _BARE.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """A string, in ASCII and on one line."""
    return '"' + _UNSAFE.sub(_escaped, text) + '"'


def value_text(value: object) -> str:
    """Any value that a configuration has, on one line; what TOML has no type for as a string."""
    if isinstance(value, Enum):
        return value_text(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Limit) and isinf(value):
        return quoted(UNLIMITED)
    if isinstance(value, float):
        return str(float(value))  # a Duration's own words are those of its class
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, Mapping):
        items = (f"{bare_or_quoted(key)} = {value_text(each)}" for key, each in value.items())
        return "{ " + ", ".join(items) + " }" if value else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return quoted(str(value))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _ESCAPES.get(character) or (f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}")
