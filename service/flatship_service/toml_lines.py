"""On which line each key of a TOML document stands, which tomllib does not say.

Only for documents that tomllib has read: what is no TOML is not noticed here.
"""

import re
from typing import Final

KeyPath = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_INLINE_BLANK: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SCALAR: Final = re.compile(r"[^,\]}#\r\n]*")  # numbers, dates, true and false
_STRINGS: Final = (
    # The longer delimiters first; of those that close, up to two quotes more are text.
    re.compile(r'"""(?:[^\\]|\\.)*?""""{0,2}', re.DOTALL),
    re.compile(r"'''.*?''''{0,2}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPED: Final = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """Each key, table and item of an array -> its line, from 1; the first one, if it has several.

    Args:
        text: A document that tomllib reads.

    Raises:
        RecursionError: Arrays or inline tables stand in each other too deeply.
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


class _Scan:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._line, self._counted = 1, 0  # the line of a place, so that none is counted twice
        self._items: dict[KeyPath, int] = {}  # arrays of tables -> how many they have by now

    def document(self) -> None:
        """Scan all of it."""
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self._text):
            before = self._at
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._assignment(table)
            if self._at == before:
                return  # no TOML: somebody else says so

    def _header(self) -> KeyPath:
        of_array = self._text.startswith("[[", self._at)
        line = self._line_here()
        self._at += 2 if of_array else 1
        keys = self._keys()
        self._at += 2 if of_array else 1
        path: KeyPath = ()
        for number, key in enumerate(keys, 1):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if of_array and number == len(keys):
                self._items[path] = self._items.get(path, 0) + 1
            if path in self._items:  # what follows belongs to its last table
                path = (*path, self._items[path] - 1)
                self.lines.setdefault(path, line)
        return path

    def _assignment(self, table: KeyPath) -> None:
        line = self._line_here()
        path = table
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_INLINE_BLANK)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_INLINE_BLANK)
            keys.append(self._key())
            self._skip(_INLINE_BLANK)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _key(self) -> str:
        first = self._text[self._at : self._at + 1]
        if first not in ('"', "'"):
            return self._take(_BARE_KEY)
        quoted = self._take(_STRINGS[2 if first == '"' else 3])[1:-1]
        return _ESCAPE.sub(_unescaped, quoted) if first == '"' else quoted

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at : self._at + 1]
        if first == "[":
            self._sequence(path, "]")
        elif first == "{":
            self._sequence(path, "}")
        elif first in ('"', "'"):
            for pattern in _STRINGS:
                if self._take(pattern):
                    return
        else:
            self._take(_SCALAR)

    def _sequence(self, path: KeyPath, end: str) -> None:
        """An array or an inline table, from its opening bracket past the closing one."""
        self._at += 1
        number = 0
        while self._skip(_BLANK) < len(self._text) and self._text[self._at] != end:
            before = self._at
            if end == "]":
                self.lines[*path, number] = self._line_here()
                self._value((*path, number))
                number += 1
            else:
                self._assignment(path)
            if self._skip(_BLANK) == before:
                return
            if self._text.startswith(",", self._at):
                self._at += 1
        self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._take(pattern)
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _ESCAPED.get(match[3], match[3])
