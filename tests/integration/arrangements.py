"""Receivers and senders that know each other, and programs that are tampered with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import Pair, Receiver, Sender


@contextmanager
def working_pair(receiver: Receiver, sender: Sender) -> Iterator[Pair]:
    """The two, serving and paired; both have ended after the block."""
    receiver.start()
    try:
        sender.join(receiver.invite()).expect(0)
        yield Pair(receiver, sender)
    finally:
        sender.close()
        receiver.stop()


def with_site(folder: Path, code: str) -> str:
    """A PYTHONPATH with which programs run ``code`` before anything else; it is put into folder."""
    (folder / "sitecustomize.py").write_text(code)
    return f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
