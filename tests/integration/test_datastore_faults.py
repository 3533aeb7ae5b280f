"""Places that are missing, full, read-only, failing or taken: one clear line, nothing harmed."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from arrangements import working_pair
from disks import MIB, loop_device, make_data_disk, make_disk, mounted, same_content
from faults import injected, needs_strace
from processes import RECEIVER, CompletedRun, Pair, Receiver, Sender, run_program, wait_until
from raw_peer import authorise, chunk, end_pass, opening, send_disk

from conftest import needs_root
from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages import DiskFailed, DiskOpened, DiskProven, Stored

FAILED: Final = 1
TRY_AGAIN: Final = 5
BUSY: Final = 11
KEPT: Final = "incomplete files kept"
DISK: Final = bytes(range(256)) * 8192  # 2 MiB
SLOW: Final = ("--limit", "1MB", "--compression", "off")


@contextmanager
def small_store(folder: Path, size: str) -> Iterator[Pair]:
    """A pair whose datastore is a tmpfs of that size."""
    receiver, sender = Receiver(folder), Sender(folder)
    tmpfs = mounted("tmpfs", receiver.datastore, "-t", "tmpfs", "-o", f"size={size}")
    with tmpfs, working_pair(receiver, sender) as pair:
        yield pair


def error_of(run: CompletedRun) -> str:
    """What the only disk failed of."""
    message: str = run.disk["error"]["message"]
    return message


# Missing


def test_receiver_does_not_start_without_its_datastore(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    run = run_program(
        *(*RECEIVER, "serve", "--state", tmp_path / "state", "--listen", "127.0.0.1:0"),
        *("--http", "127.0.0.1:0", "--datastore", f"ds={nowhere}"),
    )
    assert run.exit_code not in {0, -6, -11}
    assert str(nowhere) in run.error


@needs_root
def test_unmounted_datastore_is_not_taken_for_its_mount_point(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    receiver, sender = Receiver(tmp_path / "r"), Sender(tmp_path / "s")
    with mounted("tmpfs", receiver.datastore, "-t", "tmpfs", "-o", "size=64m"):
        receiver.start()
        sender.join(receiver.invite()).expect(0)
        sender.send(disk, vm="before").expect(0)
        subprocess.run(("umount", "--lazy", receiver.datastore), check=True)
        try:
            run = sender.send(disk, vm="after").expect(TRY_AGAIN)
            assert "missing" in error_of(run)
            assert list(receiver.datastore.iterdir()) == []
        finally:
            sender.close()
            receiver.stop()
            subprocess.run(("mount", "-t", "tmpfs", "tmpfs", receiver.datastore), check=True)


@needs_root
def test_datastore_that_goes_away_during_a_transfer_publishes_nothing(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "r")
    with mounted("tmpfs", receiver.datastore, "-t", "tmpfs", "-o", "size=64m"):
        receiver.start()
        try:
            with authorise(receiver).session() as wire:
                wire.send(opening("web", len(DISK)))
                wire.expect(DiskOpened)
                wire.send(chunk(DISK[:MIB]))
                wire.expect(Stored)
                subprocess.run(("umount", "--lazy", receiver.datastore), check=True)
                wire.send(chunk(DISK[MIB:], MIB), end_pass(DISK, 2))
                failed = wire.expect(DiskFailed)
                assert failed.code is ErrorCode.DATASTORE_MISSING
            assert list(receiver.datastore.iterdir()) == []
        finally:
            receiver.stop()
            subprocess.run(("mount", "-t", "tmpfs", "tmpfs", receiver.datastore), check=True)


# Read-only, full, failing


@needs_root
def test_read_only_datastore_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    with small_store(tmp_path / "p", "64m") as pair:
        subprocess.run(("mount", "-o", "remount,ro", pair.receiver.datastore), check=True)
        run = pair.send(disk, vm="web").expect(FAILED)
        assert "read-only" in error_of(run)
        assert pair.receiver.files("web") == []


@needs_root
def test_full_datastore_says_how_much_is_needed_and_free(tmp_path: Path) -> None:
    disk = make_data_disk(tmp_path / "disk", 8 * MIB)
    os.truncate(disk, 16 * MIB)
    with small_store(tmp_path / "p", "4m") as pair:
        run = pair.send(disk, vm="web").expect(TRY_AGAIN)
        assert "full: 8.0 MiB needed, 4.0 MiB free" in error_of(run)
        assert pair.receiver.files("web") == []


@needs_root
@pytest.mark.parametrize("provisioning", ["thick", "eager"])
def test_thick_disk_on_a_store_that_is_too_small_is_refused(
    tmp_path: Path, provisioning: str
) -> None:
    disk = make_disk(tmp_path / "disk", 8 * MIB)
    with small_store(tmp_path / "p", "4m") as pair:
        run = pair.send(disk, vm="web", options=("--provisioning", provisioning))
        run.expect(TRY_AGAIN)
        assert "full: 8.0 MiB needed, 4.0 MiB free" in error_of(run)
        assert pair.receiver.files("web") == []


@needs_root
def test_datastore_that_fills_up_on_the_way_keeps_what_it_has_until_there_is_room(
    tmp_path: Path,
) -> None:
    disk = make_data_disk(tmp_path / "disk", 8 * MIB)  # all data: nothing is reserved for it
    with small_store(tmp_path / "p", "4m") as pair:
        run = pair.send(disk, vm="web", options=(*SLOW, "--connections", "1")).expect(TRY_AGAIN)
        assert "full" in error_of(run)
        wait_until(lambda: KEPT in pair.receiver.log, "it is let go")
        run = pair.send(disk, vm="web").expect(TRY_AGAIN)
        assert "full" in error_of(run)
        wait_until(lambda: pair.receiver.log.count(KEPT) == 2, "it is let go again")
        subprocess.run(("mount", "-o", "remount,size=64m", pair.receiver.datastore), check=True)
        run = pair.send(disk, vm="web").expect(0)
        assert run.disk["bytes"]["held"] > 0
        assert same_content(disk, pair.receiver.flat("web"), 8 * MIB)


@needs_root
def test_datastore_filled_by_somebody_else_fails_the_disk_and_is_cleaned(tmp_path: Path) -> None:
    """Of a sender that cannot go on with what would be kept."""
    with small_store(tmp_path / "p", "4m") as pair:
        foreign = pair.receiver.datastore / "somebody.iso"
        with authorise(pair.receiver).session() as wire:
            wire.send(opening("web", len(DISK), reserve=len(DISK)))
            wire.expect(DiskOpened)
            wire.send(chunk(DISK[:MIB]))
            wire.expect(Stored)
            foreign.write_bytes(bytes(3 * MIB - (64 << 10)))
            wire.send(chunk(DISK[MIB:], MIB), end_pass(DISK, 2))
            failed = wire.expect(DiskFailed)
            assert failed.code is ErrorCode.DATASTORE_FULL
            wait_until(lambda: pair.receiver.files("web") == [], "incomplete files removed")
            foreign.unlink()
            assert send_disk(wire, "web", DISK, 1).published


@needs_root
def test_medium_that_loses_what_it_was_given_is_never_called_proven(tmp_path: Path) -> None:
    """A file system in a file on a full file system; not every kernel tells by an error."""
    disk = make_data_disk(tmp_path / "disk", 8 * MIB)
    receiver, sender = Receiver(tmp_path / "r"), Sender(tmp_path / "s")
    with mounted("tmpfs", tmp_path / "medium", "-t", "tmpfs", "-o", "size=8m") as medium:
        image = medium / "image"
        image.touch()
        os.truncate(image, 64 * MIB)
        subprocess.run(("mkfs.ext4", "-q", "-O", "^has_journal", image), check=True)
        with loop_device(image) as device, mounted(device, receiver.datastore):
            receiver.start()
            try:
                sender.join(receiver.invite()).expect(0)
                run = sender.send(disk, vm="web").expect(FAILED)
                assert run.disk["error"]["code"] in {"proof_failed", "write_failed"}
                assert not receiver.descriptor("web").exists()
            finally:
                sender.close()
                receiver.stop()


@needs_strace
@pytest.mark.parametrize(
    ("call", "error", "exit_code", "words"),
    [
        ("fdatasync", "EIO", FAILED, "failed to write"),
        ("pwrite64", "EIO", FAILED, "failed to write"),
        ("pwrite64", "ENOSPC", TRY_AGAIN, "full"),
    ],
)
def test_failing_system_call_fails_the_disk_and_the_next_run_works(
    paired: Pair, tmp_path: Path, call: str, error: str, exit_code: int, words: str
) -> None:
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    part = paired.receiver.datastore / "web" / "web-flat.vmdk.flatship-part"
    with injected(paired.receiver.process.pid, call, f"error={error}", part):
        run = paired.send(disk, vm="web").expect(exit_code)
        assert words in error_of(run)
        assert not paired.receiver.descriptor("web").exists()
    paired.send(disk, vm="web").expect(0)
    assert same_content(disk, paired.receiver.flat("web"), 4 * MIB)


@needs_strace
def test_publication_that_fails_costs_nothing_and_the_next_run_works(
    paired: Pair, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    with injected(paired.receiver.process.pid, "rename,renameat,renameat2", "error=EIO"):
        run = paired.send(disk, vm="web").expect(FAILED)
        assert "failed to write" in error_of(run)
        assert not paired.receiver.descriptor("web").exists()
    wait_until(lambda: KEPT in paired.receiver.log, "it is let go")
    run = paired.send(disk, vm="web").expect(0)
    assert run.disk["bytes"]["sent"] == 0
    assert same_content(disk, paired.receiver.flat("web"), 4 * MIB)


@needs_strace
def test_journal_that_cannot_be_written_is_not_taken_for_a_wrong_key(
    paired: Pair, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    with injected(paired.receiver.process.pid, "pwrite64", "error=EIO"):
        run = paired.send(disk, vm="web").expect(FAILED)
        assert "failed internally" in run.error
    paired.receiver.stop()
    paired.receiver.start()
    paired.send(disk, vm="web").expect(0)


# Taken


def test_disk_that_stands_there_is_not_touched(pair: Pair, vm: str, tmp_path: Path) -> None:
    first = make_disk(tmp_path / "first", 4 * MIB, seed=1)
    second = make_disk(tmp_path / "second", 4 * MIB, seed=2)
    pair.send(first, vm=vm).expect(0)
    before = pair.receiver.descriptor(vm).stat(), pair.receiver.flat(vm).stat()
    run = pair.send(second, vm=vm).expect(BUSY)
    assert "--replace" in error_of(run)
    assert (pair.receiver.descriptor(vm).stat(), pair.receiver.flat(vm).stat()) == before
    assert same_content(first, pair.receiver.flat(vm), 4 * MIB)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "{vm}-flat.vmdk"), (1, "{vm}.vmdk"), (2, "{vm}-f001.vmdk")]
)
def test_orphaned_file_of_that_name_is_not_touched(
    pair: Pair, tmp_path: Path, number: int, name: str
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    vm = f"orphan{number}"
    folder = pair.receiver.datastore / vm
    folder.mkdir()
    orphan = folder / name.format(vm=vm)
    orphan.write_bytes(b"somebody's only copy")
    pair.send(disk, vm=vm).expect(BUSY)
    assert orphan.read_bytes() == b"somebody's only copy"
    assert pair.receiver.files(vm) == [orphan.name]


def test_disk_that_a_host_has_open_is_refused(pair: Pair, vm: str, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    folder = pair.receiver.datastore / vm
    folder.mkdir()
    (folder / ".lck-1122334455667788").touch()
    run = pair.send(disk, vm=vm).expect(BUSY)
    assert "host" in error_of(run)
    assert pair.receiver.files(vm) == [".lck-1122334455667788"]


def plant(link: Path, target: Path) -> None:
    """A symbolic link where the receiver is about to write."""
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize(
    "name", ["web-flat.vmdk", "web.vmdk", "web-flat.vmdk.flatship-part", "web.vmdk.flatship-part"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_symbolic_link_is_neither_followed_nor_replaced(
    pair: Pair, tmp_path: Path, name: str, dangling: bool
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    vm = f"link-{name.replace('.', '-')}-{dangling}"
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"precious")
    link = pair.receiver.datastore / vm / name.replace("web", vm)
    plant(link, target)
    pair.send(disk, vm=vm).expect(BUSY)
    assert link.is_symlink()
    assert pair.receiver.files(vm) == [link.name]
    assert target.exists() is not dangling
    assert dangling or target.read_bytes() == b"precious"


def test_vm_folder_that_is_a_symbolic_link_is_not_entered(
    pair: Pair, tmp_path: Path, vm: str
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(pair.receiver.datastore / vm, elsewhere)
    pair.send(disk, vm=vm).expect(BUSY)
    assert list(elsewhere.iterdir()) == []


# Two at once


def test_second_sender_of_a_disk_is_turned_away_and_the_first_completes(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    with authorise(pair.receiver).session() as first:
        first.send(opening(vm, len(DISK)))
        first.expect(DiskOpened)
        first.send(chunk(DISK[:MIB]))
        run = pair.send(disk, vm=vm).expect(BUSY)
        assert "another transfer" in error_of(run)
        first.send(chunk(DISK[MIB:], MIB), end_pass(DISK, 2))
        assert first.expect(DiskProven).published
    assert pair.receiver.flat(vm).read_bytes() == DISK


def test_same_sender_twice_at_once_is_turned_away_and_the_first_completes(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    disk = make_data_disk(tmp_path / "disk", 3 * MIB)
    first = pair.start_send(disk, vm=vm, options=SLOW)
    wait_until(lambda: pair.receiver.files(vm) != [], "first has begun")
    second = pair.send(disk, vm=vm).expect(BUSY)
    assert "another flatship-sender" in second.error
    first.wait().expect(0)
    assert same_content(disk, pair.receiver.flat(vm), 3 * MIB)
