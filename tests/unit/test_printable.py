import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_service.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web-01 (old)", "web-01 (old)"),
        ("größe", "größe"),
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x7f", r"\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_not_printable_is_escaped_and_the_rest_is_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_result_is_one_line_without_control_characters(text: str) -> None:
    assert printable(text).isprintable()
