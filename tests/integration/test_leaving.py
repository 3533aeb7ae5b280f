"""Whoever is asked to leave leaves, although a thread waits for storage that does not answer.

Storage hangs in the programs' own calls: what hangs in strace(1), or under a
frozen file system, could not even be killed.
"""

import signal
import time
from pathlib import Path

import pytest
from arrangements import with_site
from disks import MIB, make_data_disk
from processes import Receiver, Sender, wait_until

VM = "web01"
GENEROUS = 40.0  # seconds, of which 10 are the receiver's own

HANGING = """
import os, time

def hanging(call, flag):
    def wait_and_call(*arguments):
        while os.path.exists(flag):
            time.sleep(0.05)
        return call(*arguments)
    return wait_and_call

os.fdatasync = hanging(os.fdatasync, {flag!r} + ".flush")
os.preadv = hanging(os.preadv, {flag!r} + ".read")
"""


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this path with .flush or .read exists, so do such calls of both programs not return."""
    path = tmp_path / "hang"
    monkeypatch.setenv("PYTHONPATH", with_site(tmp_path, HANGING.format(flag=str(path))))
    return path


def introduced(folder: Path) -> tuple[Receiver, Sender]:
    receiver, sender = Receiver(folder / "at-datastore"), Sender(folder / "at-host")
    receiver.start()
    sender.join(receiver.invite()).expect(0)
    return receiver, sender


def test_a_receiver_leaves_without_a_datastore_that_hangs(flag: Path, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 8 * MIB)
    receiver, sender = introduced(tmp_path)
    try:
        flag.with_suffix(".flush").touch()
        sending = sender.start_send(source, vm=VM)
        told = "the receiver answers, its storage does not get on"
        wait_until(lambda: told in sending.stderr, "the sender says it", timeout=GENEROUS)
        process = receiver.process
        told = 'event="the storage does not get on"'
        wait_until(lambda: told in process.stderr, "the receiver says it", timeout=GENEROUS)
        assert "step=flush" in process.stderr
        process.signal(signal.SIGTERM)
        assert process.wait(GENEROUS).expect(1).error.startswith("a datastore does not answer")
        sending.wait(GENEROUS).expect(3)
        receiver.kill()
        flag.with_suffix(".flush").unlink()
        receiver.start()
        assert sender.send(source, vm=VM).expect(0).disk["published"]
        receiver.verify(VM, "", "--against", source).expect(0)
    finally:
        sender.close()
        receiver.kill()


def test_a_sender_leaves_without_a_source_that_hangs(flag: Path, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 64 * MIB)
    receiver, sender = introduced(tmp_path)
    try:
        sending = sender.start_send(source, vm=VM, options=("--limit", "8MiB"))
        wait_until(lambda: "sending" in sending.stderr, "it sends")
        flag.with_suffix(".read").touch()
        told = "the source does not give its data"
        wait_until(lambda: told in sending.stderr, "it is said", timeout=GENEROUS)
        asked = time.monotonic()
        sending.signal(signal.SIGTERM)
        assert sending.wait(GENEROUS).expect(130).error.startswith("a source does not answer")
        assert time.monotonic() - asked < GENEROUS / 2
    finally:
        sender.close()
        receiver.kill()
