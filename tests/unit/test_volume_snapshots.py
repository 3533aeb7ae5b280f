"""A volume is read as it was at one moment; its snapshot goes with its reader, or soon after."""

import asyncio
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flatship_protocol.errors import SourceError, SourceReadError, SourceUnsuitable, UsageError
from flatship_sender.job import Cancelled, Job
from flatship_sender.progress import DiskProgress
from flatship_sender.snapshot_watch import finish_in_peace, interruptible, renew, watched
from flatship_sender.sources.containers import ImageFormat
from flatship_sender.sources.lvm import volume_snapshots
from flatship_sender.sources.lvm.snapshot_source import NoRoomForSnapshot, SnapshotSource
from flatship_sender.sources.lvm.tools import ToolFailed
from flatship_sender.sources.lvm.volume_snapshots import PREFIX, VolumeSnapshots
from flatship_sender.sources.lvm.volumes import Lvm, Taken, Volume
from flatship_sender.sources.opening import open_source
from flatship_sender.sources.raw import open_raw
from flatship_service.workers import Workers

KIB = 1 << 10
EXTENT = 4 * KIB
SIZE = 40 * KIB
LEFT = f"{PREFIX}{'0' * 16}"


class FakeLvm:
    """Volumes that are sparse files in a folder, the group ``vg0``, and snapshots that are copies.

    Args:
        folder: The group.
        notes: Where snapshots are noted.
    """

    def __init__(self, folder: Path, notes: Path) -> None:
        self.fullness = Taken(0.1)
        self.pool: str | None = None
        self.free = 1 << 30
        self.rooms: list[int | None] = []
        self.noted: list[bool] = []
        self.fails: BaseException | None = None
        """What a snapshot ends in that is made all the same."""
        self.in_use = False
        self.surplus = 0  # bytes that a snapshot has more than its origin
        self._folder = folder
        self._notes = notes

    def describe(self, path: str) -> Volume:
        size = os.stat(path).st_size
        return Volume("vg0", Path(path).name, size, self.pool, self.free, EXTENT)

    def taken(self, path: str) -> Taken:
        if not os.path.exists(path):
            raise ToolFailed("no such device")
        return self.fullness

    def create(self, lock: int, origin: Volume, name: str, size: int | None) -> str:
        assert is_locked(self._notes / "lvm.lock")
        self.rooms.append(size)
        self.noted.append(is_locked(self._notes / name))
        shutil.copyfile(self._folder / origin.name, self._folder / name)
        os.truncate(self._folder / name, origin.size + self.surplus)
        if self.fails is not None:
            raise self.fails
        return str(self._folder / name)

    def remove(self, lock: int, group: str, name: str) -> None:
        assert is_locked(self._notes / "lvm.lock")
        if self.in_use:
            raise ToolFailed("Logical volume is in use")
        (self._folder / name).unlink()

    def names(self, group: str) -> set[str]:
        if group != "vg0":
            raise ToolFailed(f'Volume group "{group}" not found')
        return set(os.listdir(self._folder))


def is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Place:
    """A volume ``vg0/web`` that begins with ``before``, and whoever makes snapshots of it."""

    def __init__(self, folder: Path) -> None:
        self.group = folder / "vg0"
        self.group.mkdir()
        self.notes = folder / "state" / "notes"
        self.volume = self.group / "web"
        with self.volume.open("wb") as file:
            file.truncate(SIZE)
        self.write(b"before")
        self.lvm = FakeLvm(self.group, self.notes)
        self.snapshots = VolumeSnapshots(self.lvm, self.notes)

    def write(self, text: bytes) -> None:
        with self.volume.open("r+b") as file:
            file.write(text)

    def open(self, room: int | None = None) -> SnapshotSource:
        source = open_source(str(self.volume), live=True, snapshots=self.snapshots, room=room)
        assert isinstance(source, SnapshotSource)
        return source

    def leave(self, group: str = "vg0", name: str = LEFT) -> None:
        """What a run leaves that is killed: a snapshot, and its note."""
        self.notes.mkdir(parents=True, exist_ok=True)
        (self.notes / name).write_text(group)
        shutil.copyfile(self.volume, self.group / name)

    @property
    def left(self) -> list[str]:
        """Snapshots that are there, and notes."""
        noted = self.notes.glob("*") if self.notes.is_dir() else ()
        return sorted({file.name for file in (*self.group.iterdir(), *noted)} - {"web", "lvm.lock"})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_snapshots, "_INTERVAL", 0.001)


def first_word(source: SnapshotSource) -> bytes:
    buffer = bytearray(512)
    source.read_into(memoryview(buffer), 0)
    return bytes(buffer[:6])


def test_what_is_read_is_the_volume_as_it_was_under_its_own_name_and_identity(place: Place) -> None:
    with closing(place.open()) as source, closing(open_raw(str(place.volume), live=True)) as volume:
        place.write(b"after!")
        assert first_word(source) == b"before"
        assert (source.name, source.size) == (volume.name, volume.size)
        assert source.identity == volume.identity


def test_a_snapshot_is_noted_and_its_note_locked_before_it_is_made(place: Place) -> None:
    with closing(place.open()):
        assert place.lvm.noted == [True]
        assert len(place.left) == 1


def test_who_closes_the_source_removes_its_snapshot_and_its_note(place: Place) -> None:
    source = place.open()
    source.close()
    source.close()
    assert place.left == []
    with pytest.raises(ValueError, match="closed"):
        first_word(source)


@pytest.mark.parametrize("reason", [ToolFailed("lvcreate failed: no"), KeyboardInterrupt()])
def test_one_that_is_made_and_yet_fails_is_removed(place: Place, reason: BaseException) -> None:
    place.lvm.fails = reason
    with pytest.raises((SourceUnsuitable, KeyboardInterrupt)):
        place.open()
    assert place.left == []


@pytest.mark.parametrize(("surplus", "says"), [(1, "multiple of 512"), (512, "resized just now")])
def test_one_that_is_not_the_disk_it_should_be_is_removed(
    place: Place, surplus: int, says: str
) -> None:
    place.lvm.surplus = surplus
    with pytest.raises(SourceUnsuitable, match=says):
        place.open()
    assert place.left == []


@pytest.mark.usefixtures("impatient")
def test_one_that_cannot_be_removed_is_told_and_goes_at_the_next_start(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place.open()
    place.lvm.in_use = True
    source.close()
    assert "the next run tries again" in capsys.readouterr().err
    place.lvm.in_use = False
    (name,) = place.left
    assert place.snapshots.remove_leftovers() == [f"vg0/{name}"]
    assert place.left == []


def test_what_a_run_that_was_killed_has_left_is_removed(place: Place) -> None:
    place.leave()
    assert place.snapshots.remove_leftovers() == [f"vg0/{LEFT}"]
    assert place.left == []


def test_a_note_without_a_snapshot_goes_without_a_word(place: Place) -> None:
    place.leave()
    (place.group / LEFT).unlink()
    assert place.snapshots.remove_leftovers() == []
    assert place.left == []


def test_a_snapshot_that_a_living_run_reads_stays(place: Place) -> None:
    with closing(place.open()) as source:
        assert place.snapshots.remove_leftovers() == []
        assert first_word(source) == b"before"


def test_what_has_no_note_stays_whatever_it_is_called(place: Place) -> None:
    place.leave()
    (place.notes / LEFT).unlink()
    place.leave(name=f"{PREFIX}of-somebody")
    assert place.snapshots.remove_leftovers() == []
    assert {LEFT, f"{PREFIX}of-somebody"} <= set(place.left)


def test_of_a_group_that_is_not_there_the_note_is_kept(place: Place) -> None:
    place.leave(group="vg1")
    assert place.snapshots.remove_leftovers() == []
    assert (place.notes / LEFT).exists()


@pytest.mark.usefixtures("impatient")
def test_while_a_tool_of_a_killed_run_is_at_work_nobody_looks_for_leftovers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.leave()
    monkeypatch.setattr(volume_snapshots, "TIMEOUT", 0.01)
    with place.snapshots.changing(), pytest.raises(ToolFailed, match="at work"):
        place.snapshots.remove_leftovers()
    assert LEFT in place.left


def test_where_there_is_nothing_to_remove_nothing_is_made(place: Place) -> None:
    assert place.snapshots.remove_leftovers() == []
    assert not place.notes.exists()


@pytest.mark.parametrize(
    ("pool", "taken", "says"),
    [
        (None, Taken(0.93), "93% full, and was given up; give it more with --snapshot-size"),
        (None, Taken(None), "no room for all that the guest has written; give it more"),
        ("pool", Taken(0.90), "given up before the guest is hurt, .*vg0/pool .*data 90%.*lvextend"),
        ("pool", Taken(0.1, 0.95), "metadata 95%"),
    ],
    ids=["filling", "overflowed", "data", "metadata"],
)
def test_a_snapshot_for_which_room_runs_out_is_given_up(
    place: Place, pool: str | None, taken: Taken, says: str
) -> None:
    place.lvm.pool = pool
    source = place.open()
    source.look()
    assert first_word(source) == b"before"
    place.lvm.fullness = taken
    source.look()
    assert place.left == []
    with pytest.raises(NoRoomForSnapshot, match=says):
        first_word(source)
    source.close()


@pytest.mark.parametrize("taken", [Taken(0.98), Taken(0.2, 0.9)])
def test_in_a_pool_that_is_almost_full_none_is_made(place: Place, taken: Taken) -> None:
    place.lvm.pool, place.lvm.fullness = "pool", taken
    with pytest.raises(NoRoomForSnapshot, match="no snapshot of it is made"):
        place.open()
    assert place.lvm.rooms == []


def test_what_cannot_be_watched_is_given_up(place: Place) -> None:
    source = place.open()
    (snapshot,) = place.left
    (place.group / snapshot).rename(place.group / "elsewhere")
    source.look()
    with pytest.raises(NoRoomForSnapshot, match="nobody can say"):
        first_word(source)


@pytest.mark.parametrize(
    ("taken", "error"), [(Taken(None), NoRoomForSnapshot), (Taken(0.5), SourceReadError)]
)
def test_a_read_that_fails_says_if_an_overflow_is_why(
    place: Place, taken: Taken, error: type[SourceError]
) -> None:
    with closing(place.open()) as source:
        (snapshot,) = place.left
        os.truncate(place.group / snapshot, 0)
        place.lvm.fullness = taken
        with pytest.raises(error):
            first_word(source)


def test_a_snapshot_is_there_until_the_last_read_of_it_has_ended(place: Place) -> None:
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, path: str) -> None:
            self._device = open_raw(path, live=True)
            self.size, self.remarks = self._device.size, ()

        def read_into(self, buffer: memoryview, offset: int) -> None:
            reading.set()
            assert go_on.wait(10)
            self._device.read_into(buffer, offset)

        def close(self) -> None:
            self._device.close()

    with closing(open_raw(str(place.volume), live=True)) as origin:
        volume = place.lvm.describe(str(place.volume))
        source = SnapshotSource(origin, volume, place.snapshots, None, Slow)  # type: ignore[arg-type]
    words: list[bytes] = []
    reader = threading.Thread(target=lambda: words.append(first_word(source)))
    closer = threading.Thread(target=source.close)
    reader.start()
    assert reading.wait(10)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    reader.join(10)
    closer.join(10)
    assert words == [b"before"]
    assert place.left == []


@pytest.mark.parametrize(
    ("asked", "free", "got"),
    [
        (None, 1 << 30, 8 * KIB),
        (None, 5 * KIB, 4 * KIB),
        (1, 1 << 30, 4 * KIB),
        (9 * KIB, 12 * KIB, 12 * KIB),
    ],
    ids=["a fifth", "what is left", "an extent at least", "whole extents"],
)
def test_a_thick_snapshot_gets_what_was_asked_or_a_fifth(
    place: Place, asked: int | None, free: int, got: int
) -> None:
    place.lvm.free = free
    place.open(asked).close()
    assert place.lvm.rooms == [got]


@pytest.mark.parametrize(("asked", "free"), [(None, EXTENT - 1), (9 * KIB, 8 * KIB)])
def test_where_its_group_has_no_room_none_is_made(
    place: Place, asked: int | None, free: int
) -> None:
    place.lvm.free = free
    with pytest.raises(NoRoomForSnapshot, match=r"volume group vg0 has .* left, too little"):
        place.open(asked)
    assert place.lvm.rooms == []


def test_another_pass_reads_another_snapshot_and_one_is_there_at_a_time(place: Place) -> None:
    with closing(place.open()) as source:
        place.write(b"after!")
        source.renew()
        assert first_word(source) == b"after!"
        assert len(place.left) == 1
    assert place.left == []


def test_one_that_was_given_up_is_not_renewed(place: Place) -> None:
    source = place.open()
    place.lvm.fullness = Taken(1.0)
    source.look()
    source.renew()
    assert place.left == []


@pytest.mark.parametrize(
    "kind", [None, ImageFormat.RAW, ImageFormat.QCOW2], ids=["any", "raw", "qcow2"]
)
def test_of_what_is_no_volume_a_snapshot_is_a_wrong_use(
    tmp_path: Path, kind: ImageFormat | None
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(KIB))
    snapshots = VolumeSnapshots(Lvm(), tmp_path / "notes")
    with pytest.raises(UsageError, match="--snapshot takes"):
        open_source(str(disk), live=True, source_format=kind, snapshots=snapshots)


def job(source: SnapshotSource) -> Job:
    return Job(source, None, DiskProgress(source.name, "web", source.size))  # type: ignore[arg-type]  # no session opens it


def test_snapshots_are_looked_after_and_renewed_by_way_of_their_jobs(place: Place) -> None:
    async def play() -> None:
        workers = Workers(2, "test")
        try:
            source = place.open()
            place.write(b"after!")
            await renew([job(source)], workers)
            assert first_word(source) == b"after!"
            async with watched([job(source)], workers, interval=0.001), asyncio.timeout(10):
                place.lvm.fullness = Taken(0.95)
                while place.left:  # noqa: ASYNC110  # files are not told of
                    await asyncio.sleep(0.001)
        finally:
            workers.close()

    asyncio.run(play())


@pytest.fixture
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_run_that_is_told_to_stop_while_it_opens_leaves_by_the_way_it_came(place: Place) -> None:
    with pytest.raises(Cancelled), interruptible(), closing(place.open()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert place.left == []


@pytest.mark.usefixtures("handlers")
def test_no_signal_keeps_a_run_from_removing_its_snapshot(place: Place) -> None:
    with interruptible(), closing(place.open()):
        finish_in_peace()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert place.left == []
