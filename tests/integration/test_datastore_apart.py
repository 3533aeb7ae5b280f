"""A datastore that hangs, beside one that does not: what goes to the other is none of its business.

It hangs in the receiver's own calls, as in ``test_leaving``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from arrangements import with_site
from disks import MIB, allocated, make_data_disk, same_content
from processes import Receiver, Sender, wait_until

HANGING = """
import os, time

def hanging(call, name):
    def wait_and_call(fd, *arguments):
        if name in os.readlink(f"/proc/self/fd/{{fd}}"):
            while os.path.exists({flag!r} + "." + call.__name__):
                time.sleep(0.05)  # the fault itself: a call that does not return
        return call(fd, *arguments)
    return wait_and_call

for call in (os.pwrite, os.fdatasync, os.preadv):
    setattr(os, call.__name__, hanging(call, "/hanging/"))
"""
CALLS = ("pwrite", "fdatasync", "preadv")
SIZE = 64 * MIB


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this path with a call's name exists, that call does not return for one datastore."""
    path = tmp_path / "hang"
    monkeypatch.setenv("PYTHONPATH", with_site(tmp_path, HANGING.format(flag=str(path))))
    return path


@pytest.fixture
def receiver(flag: Path, tmp_path: Path) -> Iterator[Receiver]:
    """A receiver with a second datastore, ``hanging``."""
    receiver = Receiver(tmp_path / "at-datastore")
    hanging = tmp_path / "hanging"
    hanging.mkdir()
    receiver.start("--datastore", f"hanging={hanging}")
    try:
        yield receiver
    finally:
        receiver.kill()


@pytest.mark.parametrize("call", CALLS)
def test_what_goes_to_another_datastore_gets_on(
    receiver: Receiver, sender: Sender, flag: Path, tmp_path: Path, call: str
) -> None:
    sender.join(receiver.invite()).expect(0)
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    other = make_data_disk(tmp_path / "other.raw", SIZE, seed=2)
    slowly = ("--datastore", "hanging", "--limit", "16MiB")
    stuck = [sender.start_send(source, vm=vm, options=slowly) for vm in ("one", "two")]
    parts = [tmp_path / "hanging" / vm / f"{vm}-flat.vmdk.flatship-part" for vm in ("one", "two")]
    for part in parts:
        wait_until(lambda part=part: part.exists() and allocated(part) >= 4 * MIB, "it is sent")
    flag.with_suffix(f".{call}").touch()
    said = "the receiver answers, its storage does not get on"
    wait_until(lambda: all(said in each.stderr for each in stuck), "both are stuck", timeout=40.0)
    sender.send(other, vm="web").expect(0)
    assert same_content(other, receiver.flat("web"), SIZE)
    flag.with_suffix(f".{call}").unlink()
    for each in stuck:
        assert each.wait().expect(0).disk["published"]
