"""Small ext4 and XFS that somebody else fills up in the middle of a transfer, and then empties."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from arrangements import working_pair
from disks import MIB, loop_device, make_data_disk, mounted, same_content
from processes import CompletedRun, Pair, Receiver, Running, Sender, wait_until
from stages import check_logs, same_to_qemu

from conftest import needs_root
from flatship_receiver.images import describe
from flatship_receiver.journal import Journal

pytestmark = needs_root

SIZE: Final = 12 * MIB
VM: Final = "web"
SLOWLY: Final = ("--limit", "4MB", "--compression", "off", "--connections", "1")
FAILED, TRY_AGAIN = 1, 5
SMALLEST: Final = {"ext4": 48 * MIB, "xfs": 320 * MIB}  # bytes; mkfs.xfs takes no less


@contextmanager
def file_system(kind: str, folder: Path, where: Path) -> Iterator[Path]:
    """A fresh file system of its smallest size, mounted at ``where``."""
    image = folder / f"{where.name}.image"
    with image.open("wb") as file:
        file.truncate(SMALLEST[kind])
    options = {"ext4": ("-m", "0"), "xfs": ()}[kind]
    subprocess.run((f"mkfs.{kind}", "-q", *options, image), check=True)
    with loop_device(image) as device, mounted(device, where):
        yield where


def fill(folder: Path) -> Path:
    """Take all the space there is, to the last block; returns what takes it."""
    filler = folder / "somebody.iso"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 1024, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
        os.fsync(file.fileno())
    return filler


def on_record(pair: Pair) -> int:
    """Bytes that the record says are on stable storage of the disk that is under way."""
    with closing(Journal.open_read_only(pair.receiver.state)) as journal:
        return sum(describe(image, journal).held for image in journal.images())


def half_way(pair: Pair, disk: Path) -> Running:
    """Begin to send, and return when a part of the disk is on record."""
    sending = pair.start_send(disk, vm=VM, options=SLOWLY)
    wait_until(lambda: 0 < on_record(pair) < SIZE // 2, "a part of it is on record")
    return sending


def goes_on(pair: Pair, disk: Path, held: int) -> None:
    """The same command completes, and sends nothing that was on record."""
    last: list[CompletedRun] = []

    def done() -> bool:
        last[:] = [pair.send(disk, vm=VM)]
        return last[0].disk["error"] is None or last[0].disk["error"]["code"] != "disk_busy"

    wait_until(done, "the disk is let go of")
    run = last[0].expect(0)
    assert run.disk["bytes"]["held"] >= held > 0
    assert same_content(disk, pair.receiver.flat(VM), SIZE)
    same_to_qemu(disk, pair.receiver.descriptor(VM))
    check_logs(pair.receiver)


@pytest.mark.parametrize("kind", SMALLEST)
def test_datastore_that_is_filled_by_another_writer_keeps_what_it_has(
    kind: str, tmp_path: Path
) -> None:
    disk = make_data_disk(tmp_path / "disk", SIZE)
    receiver, sender = Receiver(tmp_path / "r"), Sender(tmp_path / "s")
    with file_system(kind, tmp_path, receiver.datastore), working_pair(receiver, sender) as pair:
        sending = half_way(pair, disk)
        filler = fill(receiver.datastore)
        run = sending.wait().expect(TRY_AGAIN)
        assert run.disk["error"]["code"] == "datastore_full"
        held = on_record(pair)
        assert not receiver.descriptor(VM).exists()
        again = pair.send(disk, vm=VM)
        assert again.exit_code != 0  # there is still no room
        assert on_record(pair) >= held
        filler.unlink()
        goes_on(pair, disk, held)


def test_state_folder_that_is_filled_by_another_writer_costs_nothing(tmp_path: Path) -> None:
    """On ext4: XFS has allocated more for the journal's log than a small disk needs."""
    disk = make_data_disk(tmp_path / "disk", SIZE)
    receiver, sender = Receiver(tmp_path / "r"), Sender(tmp_path / "s")
    with file_system("ext4", tmp_path, receiver.state), working_pair(receiver, sender) as pair:
        sending = half_way(pair, disk)
        filler = fill(receiver.state)
        run = sending.wait().expect(FAILED)
        assert "see its log" in run.disk["error"]["message"]
        assert f"no space is left for the journal; free some in {receiver.state}" in receiver.log
        assert not receiver.descriptor(VM).exists()
        held = on_record(pair)
        filler.unlink()
        goes_on(pair, disk, held)


@pytest.mark.parametrize("kind", SMALLEST)
def test_sender_whose_state_folder_is_full_says_so(kind: str, tmp_path: Path) -> None:
    disk = make_data_disk(tmp_path / "disk", SIZE)
    receiver, sender = Receiver(tmp_path / "r"), Sender(tmp_path / "s")
    with file_system(kind, tmp_path, sender.state), working_pair(receiver, sender) as pair:
        pair.sender.send(make_data_disk(tmp_path / "first", MIB), vm="first").expect(0)
        filler = fill(sender.state)
        run = pair.send(disk, vm=VM).expect(TRY_AGAIN)
        assert "cannot be written: No space left on device" in run.error
        filler.unlink()
        pair.send(disk, vm=VM).expect(0)
