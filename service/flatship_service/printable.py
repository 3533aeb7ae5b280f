"""Text from strangers, made safe for a terminal, for a log line, and for JSON."""


def printable(text: str) -> str:
    r"""Return ``text`` with everything that is not printable written as an escape.

    Line breaks, control bytes (terminal escapes among them), invisible and
    direction-changing characters and undecodable bytes become ``\n``,
    ``\x1b``, ``\u202e`` and the like. The result is one line.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def as_unicode(text: str) -> str:
    """The text itself, but for undecodable bytes of a path, which JSON cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()
