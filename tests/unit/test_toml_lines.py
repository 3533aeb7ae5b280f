"""Where keys stand in TOML, held against what tomllib reads in the same document."""

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_service.toml_lines import KeyPath, key_lines
from flatship_service.toml_text import bare_or_quoted, value_text

DOCUMENT = '''\
# a comment = 1, [with, brackets]
title = "a # that is none" # and one that is
"quoted.key" = 1
'literal "key"' = 2
a . b = 3
numbers = [ 1, 2, # [ not a bracket
  3,
]
text = """
[no.table]
no_key = 1 \\""" ""\\
"""
raw = \'\'\'
\\' [x] \'\'
two quotes more\'\'\'\'\'
empty = ""
inline = { x = 1, y.z = [ { w = "}" } ], "v" = 'b' }
when = 1979-05-27 07:32:00Z
"\\u00e9\\n" = true

[table]   # comment
key = 1
[table."sub.table".deep]
key = 1

[[array]]
name = "one"
[array.of]
x = 1
[[array.inner]]
x = 1
[[array]]
name = "two"
[[array.inner]]
x = 1
[[array.inner]]
  x = 2
'''


def paths(value: object, at: KeyPath = ()) -> Iterator[KeyPath]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, (*at, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from paths(each, (*at, number))


def line_of(text: str, *path: str | int) -> str:
    return text.split("\n")[key_lines(text)[path] - 1].strip()


def test_each_key_table_and_item_that_tomllib_finds_has_a_line_and_nothing_else_has() -> None:
    assert set(key_lines(DOCUMENT)) == set(paths(tomllib.loads(DOCUMENT)))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("quoted.key",), '"quoted.key" = 1'),
        (('literal "key"',), "'literal \"key\"' = 2"),
        (("a", "b"), "a . b = 3"),
        (("numbers", 2), "3,"),
        (("raw",), "raw = '''"),
        (("empty",), 'empty = ""'),
        (("when",), "when = 1979-05-27 07:32:00Z"),
        (("é\n",), '"\\u00e9\\n" = true'),
        (("table",), "[table]   # comment"),
        (("table", "sub.table", "deep", "key"), "key = 1"),
        (("array", 0, "name"), 'name = "one"'),
        (("array", 1, "name"), 'name = "two"'),
        (("array", 1, "inner", 1, "x"), "x = 2"),
    ],
)
def test_a_line_is_that_of_the_key(path: tuple[str | int, ...], line: str) -> None:
    assert line_of(DOCUMENT, *path) == line


def test_line_ends_of_windows_count_once() -> None:
    assert key_lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}


def test_what_is_no_toml_comes_to_an_end() -> None:
    for text in ("=", "[", "]", "a", "a = ", "a = [", "a = {", 'a = "', "a = '''", "\x00", "[[["):
        key_lines(text)


keys = st.text(max_size=5)
values = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(keys, st.dictionaries(keys, values, max_size=4), max_size=4))
def test_any_document_of_ours_has_its_lines(tables: dict[str, dict[str, object]]) -> None:
    lines = []
    expected: dict[KeyPath, int] = {}
    for name, table in tables.items():
        lines.append(f"[{bare_or_quoted(name)}]")
        expected[name,] = len(lines)
        for key, value in table.items():
            lines.append(f"{bare_or_quoted(key)} = {value_text(value)}")
            expected[name, key] = len(lines)
    text = "\n".join(lines)
    assert tomllib.loads(text) == tables
    found = key_lines(text)
    assert {path: found[path] for path in expected} == expected
    assert set(found) == set(paths(tables))
