"""Fixtures over real processes; ``processes`` and ``disks`` say what they are made of."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from arrangements import working_pair
from disks import is_root
from processes import Pair, Receiver, Sender
from raw_peer import RawSender, authorise

needs_root = pytest.mark.skipif(not is_root(), reason="attaches devices, which takes root")


@contextmanager
def serving_pair(folder: Path) -> Iterator[Pair]:
    """A receiver and a sender below ``folder``, paired; both have ended after the block."""
    with working_pair(Receiver(folder), Sender(folder)) as pair:
        yield pair


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that serves; it has ended, and well, after the test."""
    receiver = Receiver(tmp_path / "at-datastore")
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    """A sender that has paired with nobody."""
    sender = Sender(tmp_path / "at-host")
    try:
        yield sender
    finally:
        sender.close()


@pytest.fixture
def paired(receiver: Receiver, sender: Sender) -> Pair:
    """A receiver and a sender of this test alone, paired."""
    sender.join(receiver.invite()).expect(0)
    return Pair(receiver, sender)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair that the tests of a module share; each sends VMs of its own name (``vm``)."""
    with serving_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> str:
    """A VM's name that no other test of the module uses."""
    name: str = request.node.name.removeprefix("test_")
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:70] + "-vm"


@pytest.fixture
def authorised(pair: Pair) -> Callable[..., RawSender]:
    """Makes senders that the receiver knows; an argument stands before the key on their line."""
    return partial(authorise, pair.receiver)


@pytest.fixture
def me(authorised: Callable[..., RawSender]) -> RawSender:
    """A sender that may do everything."""
    return authorised()
