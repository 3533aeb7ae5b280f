"""Inputs worth keeping, a file a decoder: ``corpus/NAME.txt``.

A line an input, written like the inside of a Python bytes literal. Lines that
start with ``#`` say where the next ones come from. What broke a decoder once stays.
"""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"
FOUND: Final = "# reaches code that the seeds do not reach"


def read(name: str) -> list[bytes]:
    """All inputs kept for the decoder called ``name``, none if there is no file."""
    return [decode_line(line) for line in _lines(name) if not line.startswith("#")]


def read_regressions(name: str) -> list[bytes]:
    """Of the inputs kept for a decoder, those that broke it once."""
    lines = _lines(name)
    kept = lines[: lines.index(FOUND)] if FOUND in lines else lines
    return [decode_line(line) for line in kept if not line.startswith("#")]


def keep_found(name: str, found: Iterable[bytes]) -> None:
    """Replace what earlier runs found; what stands before it, regressions above all, stays."""
    lines = _lines(name)
    kept = lines[: lines.index(FOUND)] if FOUND in lines else lines
    fresh = sorted(map(encode_line, set(found)), key=lambda line: (len(line), line))
    _write(name, [*kept, FOUND, *fresh] if fresh else kept)


def keep_regression(name: str, data: bytes, why: str) -> None:
    """Put an input that broke the decoder before all others."""
    _write(name, [f"# {why}", encode_line(data), *_lines(name)])


def encode_line(data: bytes) -> str:
    """``data`` on one line of ASCII."""
    line = repr(b'"' + data)[3:-1]  # the quote in front makes Python delimit by the other one
    return line.replace("#", r"\x23", 1) if line.startswith("#") else line


def decode_line(line: str) -> bytes:
    """What ``encode_line`` wrote."""
    value = ast.literal_eval(f"b'{line}'")
    assert isinstance(value, bytes)
    return value


def _lines(name: str) -> list[str]:
    path = FOLDER / f"{name}.txt"
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []


def _write(name: str, lines: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    (FOLDER / f"{name}.txt").write_text(text, encoding="ascii")
