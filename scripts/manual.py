"""Make a program's manual page out of its manual, ``sender/README.md`` or ``receiver/README.md``.

    scripts/manual.py receiver > flatship-receiver.1

There is one text for each program: tests hold its commands, options, metrics and exit
codes against the program, and what they hold of it holds of the page. Tables become
tagged paragraphs, because a page has 80 columns. SOURCE_DATE_EPOCH dates it.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from flatship_service import __version__

ROOT: Final = Path(__file__).parents[1]
# What troff would take for its own, or print as another character than was meant.
ESCAPES: Final = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)
TAG_AND_TEXT: Final = 2  # columns
INDENT: Final = 4  # columns of a list or a block


def page(program: str, summary: str, markdown: str, date: str) -> str:
    """The page as troff's man macros.

    Args:
        program: Its name on the command line.
        summary: What it does, in a line.
        markdown: The manual: a heading with the name, what the program is, a fenced synopsis,
            sections.
        date: Of the page, for its footer.
    """
    root = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown))
    title, introduction, synopsis, *sections = root.children
    if (title.type, introduction.type, synopsis.type) != ("heading", "paragraph", "fence"):
        raise ValueError(f"the manual of {program} does not begin with name, purpose and synopsis")
    lines = [
        f'.TH {program.upper().translate(ESCAPES)} 1 "{date}" "Flatship {__version__}"',
        ".SH NAME",
        f"{_escape(program)} \\- {_escape(summary)}",
        ".SH SYNOPSIS",
        *_verbatim(synopsis),
        ".SH DESCRIPTION",
        *_paragraph(introduction),
    ]
    for node in sections:
        # A heading begins a paragraph by itself.
        headed = lines[-1].startswith((".SH", ".SS"))
        lines += (line for line in _block(node) if not (headed and line == ".PP"))
    return "\n".join(lines) + "\n"


def _block(node: SyntaxTreeNode) -> Iterator[str]:
    if node.type == "heading":
        text = _inline(node)
        yield f".SH {text.upper()}" if node.tag == "h2" else f".SS {text}"
    elif node.type == "paragraph":
        yield ".PP"
        yield from _paragraph(node)
    elif node.type == "fence":
        yield ".PP"
        yield f".RS {INDENT}"
        yield from _verbatim(node)
        yield ".RE"
    elif node.type in ("bullet_list", "ordered_list"):
        for number, item in enumerate(node.children, 1):
            yield (
                rf".IP {number}. {INDENT}" if node.type == "ordered_list" else rf".IP \(bu {INDENT}"
            )
            for inner in item.children:
                yield from _paragraph(inner)
    elif node.type == "table":
        yield from _table(node)
    else:
        raise ValueError(f"a manual page has no {node.type}; write it here, or otherwise there")


def _table(node: SyntaxTreeNode) -> Iterator[str]:
    head, *bodies = node.children
    names = [_inline(cell) for cell in head.children[0].children]
    for row in (row for body in bodies for row in body.children):
        tag, *cells = (_inline(cell) for cell in row.children)
        yield ".TP"
        yield _line(tag)
        if len(names) == TAG_AND_TEXT:
            yield _line(cells[0])
        else:
            yield _line(
                "; ".join(
                    f"{name}: {cell}" for name, cell in zip(names[1:], cells, strict=True) if cell
                )
            )


def _paragraph(node: SyntaxTreeNode) -> Iterator[str]:
    for line in _inline(node).split("\n"):
        yield _line(line)


def _verbatim(node: SyntaxTreeNode) -> Iterator[str]:
    yield ".EX"
    for line in node.content.rstrip("\n").split("\n"):
        yield _line(_escape(line))
    yield ".EE"


def _line(text: str) -> str:
    """A line of text; one that began with a dot would be a request to troff."""
    return rf"\&{text}" if text.startswith((".", r"\(aq")) or not text else text


def _inline(node: SyntaxTreeNode) -> str:
    """The text below a node, with fonts; of links what they are called."""
    if node.type == "text":
        return _escape(node.content)
    if node.type in ("softbreak", "hardbreak"):
        return "\n"
    text = (
        _escape(node.content)
        if node.type == "code_inline"
        else "".join(_inline(child) for child in node.children)
    )
    font = {"code_inline": "B", "strong": "B", "em": "I"}.get(node.type)
    return rf"\f{font}{text}\fR" if font else text


def _escape(text: str) -> str:
    return text.translate(ESCAPES)


def main(arguments: Sequence[str]) -> None:
    """Print the page of the role that is named: sender or receiver."""
    (role,) = arguments
    if role == "sender":
        from flatship_sender.cli import cli  # noqa: PLC0415  # one page, one program
    else:
        from flatship_receiver.cli import cli  # noqa: PLC0415  # likewise
    made = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    summary = str(cli.help).removesuffix(".")
    manual = (ROOT / role / "README.md").read_text(encoding="utf-8")
    print(
        page(
            f"flatship-{role}",
            summary[0].lower() + summary[1:],
            manual,
            time.strftime("%Y-%m-%d", made),
        ),
        end="",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
