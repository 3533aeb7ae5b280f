"""A program's manual becomes its manual page."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from manual import page  # noqa: E402

HEAD = "# prog\n\nDoes it.\n\n```\nprog [--fast]\n```\n\n"


def body(markdown: str) -> list[str]:
    """The lines that a piece of a manual becomes."""
    return page("prog", "does it", HEAD + markdown, "2026-01-31").splitlines()[8:]


def test_a_page_begins_with_name_synopsis_and_description() -> None:
    assert page("prog", "does it", HEAD, "2026-01-31").splitlines()[1:] == [
        *[".SH NAME", r"prog \- does it", ".SH SYNOPSIS", ".EX", r"prog [\-\-fast]", ".EE"],
        *[".SH DESCRIPTION", "Does it."],
    ]


def test_headings_become_sections_and_subsections() -> None:
    assert body("## Exit codes\n\nText.\n\n### send\n\nMore.\n")[1:] == [
        *[".SH EXIT CODES", "Text.", ".SS send", "More."]
    ]


def test_a_row_of_a_table_becomes_a_tag_and_its_text() -> None:
    table = "| option | meaning |\n|---|---|\n| `--fast` | quick |\n"
    assert body(table)[1:] == [".TP", r"\fB\-\-fast\fR", "quick"]


def test_the_columns_of_a_wide_table_are_named_and_empty_ones_left_out() -> None:
    table = "| code | exit | do |\n|---|---|---|\n| a | 2 | wait |\n| b | 3 | |\n"
    assert body(table)[1:] == [".TP", "a", "exit: 2; do: wait", ".TP", "b", "exit: 3"]


def test_what_troff_would_take_for_its_own_is_escaped() -> None:
    assert body(".dot\n\n'quote\n\na-b `\\n` ~ ^\n")[1:] == [
        *[".PP", r"\&.dot", ".PP", r"\&\(aqquote", ".PP", r"a\-b \fB\en\fR \(ti \(ha"]
    ]


def test_a_link_is_what_it_is_called() -> None:
    assert body("See [Files](#files).\n")[1:] == [".PP", "See Files."]


def test_a_manual_without_a_synopsis_is_refused() -> None:
    with pytest.raises(ValueError, match="purpose and synopsis"):
        page("prog", "does it", "# prog\n\nDoes it.\n\nMore.\n", "2026-01-31")


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_a_programs_own_manual_becomes_a_dated_page(role: str) -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "manual.py", role],
        capture_output=True,
        text=True,
        check=True,
        env={"SOURCE_DATE_EPOCH": "0"},
    ).stdout
    assert made.startswith(f'.TH FLATSHIP\\-{role.upper()} 1 "1970-01-01"')
    assert ".SH EXIT CODES" in made
