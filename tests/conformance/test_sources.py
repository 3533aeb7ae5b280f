"""What every ``BlockSource`` keeps, run on each implementation.

Needs root for the loop devices, a tmpfs at /dev/shm, and for disk images qemu's programs and FUSE.
"""

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flatship_protocol.errors import SourceBusy, SourceReadError
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.sources.base import BlockSource
from flatship_sender.sources.memory import MemorySource
from flatship_sender.sources.opening import open_source

KIB = 1 << 10
MIB = 1 << 20
SIZE = 8 * MIB + 1536  # ends in a chunk, a page and a stretch of its own
RUNS = {  # data; everything else is a hole
    0: bytes(range(256)) * 256,
    3 * MIB: b"flatship" * (128 * KIB),
    6 * MIB + 64 * KIB: b"\xff" * 64 * KIB,
    8 * MIB: b"tail" * 384,
}
CONTENT = bytearray(SIZE)
for _offset, _data in RUNS.items():
    CONTENT[_offset : _offset + len(_data)] = _data


@dataclass(frozen=True)
class Case:
    """A source over CONTENT, and what a test may do to it."""

    source: BlockSource
    again: Callable[[], BlockSource]  # opens the same source once more
    other: Callable[[], BlockSource]  # opens another one with the same content
    disturb: Callable[[], None]  # somebody starts to write
    break_at: Callable[[int], None]  # what is behind this many bytes becomes unreadable
    knows_holes: bool
    fails_in_part: bool = True  # what is before ``break_at`` can still be read


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, data in RUNS.items():
            file.seek(offset)
            file.write(data)


@contextmanager
def attached(path: Path) -> Iterator[str]:
    """A loop device over ``path``, detached on every way out."""
    device = subprocess.run(
        ["losetup", "--find", "--show", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def memory_case() -> Iterator[Case]:
    source = MemorySource(RUNS, size=SIZE)
    yield Case(
        source=source,
        again=lambda: MemorySource(RUNS, size=SIZE),
        other=lambda: MemorySource(RUNS, size=SIZE, name="another"),
        disturb=lambda: source.become_busy("a test"),
        break_at=source.shrink_to,
        knows_holes=True,
    )


@contextmanager
def path_case(
    stack: ExitStack, path: str, backing: Path, other: str, *, holes: bool, in_part: bool = True
) -> Iterator[Case]:
    def opened(name: str) -> BlockSource:
        source = open_source(name, live=False)
        stack.callback(source.close)
        return source

    def disturb() -> None:
        # Another process, since our own is no stranger; it reports once it has the source open.
        writer = subprocess.Popen(
            ["sh", "-c", 'exec 3<>"$0"; echo; exec cat', path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(writer.__exit__, None, None, None)
        stack.callback(writer.kill)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"\n"

    yield Case(
        source=opened(path),
        again=lambda: opened(path),
        other=lambda: opened(other),
        disturb=disturb,
        break_at=lambda size: os.truncate(backing, size if in_part else 64 * KIB),
        knows_holes=holes,
        fails_in_part=in_part,
    )


@contextmanager
def image_case(stack: ExitStack, raw: Path, other: Path) -> Iterator[Case]:
    """A disk image; of what is in its file nobody knows where, so it fails as a whole."""
    images = [path.with_suffix(".qcow2") for path in (raw, other)]
    for path, image in zip((raw, other), images, strict=True):
        convert = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(path), str(image))
        subprocess.run(convert, check=True)
    yield stack.enter_context(
        path_case(stack, str(images[0]), images[0], str(images[1]), holes=True, in_part=False)
    )


@pytest.fixture(params=["memory", "file on disk", "file on tmpfs", "loop device", "qcow2 image"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield stack.enter_context(memory_case())
            return
        folder = tmp_path
        if request.param == "file on tmpfs":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        first, second = folder / "first.raw", folder / "second.raw"
        for path in (first, second):
            write_sparse(path)
        if request.param == "qcow2 image":
            yield stack.enter_context(image_case(stack, first, second))
            return
        names = [str(first), str(second)]
        is_device = request.param == "loop device"
        if is_device:
            names = [stack.enter_context(attached(path)) for path in (first, second)]
        yield stack.enter_context(path_case(stack, names[0], first, names[1], holes=not is_device))


def read(source: BlockSource, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def test_size_and_sector_size_are_those_of_the_disk(case: Case) -> None:
    assert case.source.size == SIZE
    assert case.source.block_size == 512


def test_whole_disk_reads_as_it_was_written(case: Case) -> None:
    assert read(case.source, 0, SIZE) == CONTENT


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 512), (512, 512), (3 * MIB - 512, 1024), (MIB, MIB), (8 * MIB, 1536), (SIZE - 512, 512)],
)
def test_any_whole_sectors_can_be_read(case: Case, offset: int, length: int) -> None:
    assert read(case.source, offset, length) == CONTENT[offset : offset + length]


def test_memory_that_is_not_page_aligned_can_be_filled(case: Case) -> None:
    memory = bytearray(MIB + 4096)
    case.source.read_into(memoryview(memory)[7 : 7 + MIB], 3 * MIB)
    assert memory[7 : 7 + MIB] == CONTENT[3 * MIB : 4 * MIB]
    assert not any(memory[:7])
    assert not any(memory[7 + MIB :])


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, 512), (0, 511), (SIZE, 512), (SIZE - 512, 1024), (-512, 512)],
)
def test_misaligned_or_outside_is_refused_and_nothing_is_read(
    case: Case, offset: int, length: int
) -> None:
    buffer = bytearray(b"?" * length)
    with pytest.raises(ValueError, match="whole sectors"):
        case.source.read_into(memoryview(buffer), offset)
    assert buffer == b"?" * length


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (MIB, 5 * MIB), (0, 512), (2 * MIB, 512), (3 * MIB + 512, 4 * MIB), (SIZE, 0)],
)
def test_extents_cover_exactly_what_was_asked_for_in_order(
    case: Case, offset: int, length: int
) -> None:
    position = offset
    previous = None
    for extent in case.source.extents(offset, length):
        assert extent.offset == position
        assert extent.length > 0
        assert extent.kind is not previous
        position, previous = extent.end, extent.kind
    assert position == offset + length


def test_what_is_called_a_hole_reads_as_zeros(case: Case) -> None:
    for extent in case.source.extents(0, SIZE):
        if extent.kind is ExtentKind.HOLE:
            assert not any(CONTENT[extent.offset : extent.end])


def test_holes_are_reported_by_those_that_know_them(case: Case) -> None:
    gap = list(case.source.extents(MIB, MIB))
    assert gap == [Extent(MIB, MIB, ExtentKind.HOLE if case.knows_holes else ExtentKind.DATA)]


def test_extents_outside_the_disk_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="not within"):
        case.source.extents(0, SIZE + 512)


def test_identity_is_the_same_when_opened_again_and_another_for_another(case: Case) -> None:
    assert len(case.source.identity) == 32
    assert case.again().identity == case.source.identity
    assert case.other().identity != case.source.identity


def test_threads_read_at_once_without_disturbing_each_other(case: Case) -> None:
    wrong: list[int] = []

    def work(step: int) -> None:
        buffer = bytearray(64 * KIB)
        for offset in range(step * 64 * KIB, 8 * MIB, 4 * 64 * KIB):
            case.source.read_into(memoryview(buffer), offset)
            if buffer != CONTENT[offset : offset + 64 * KIB]:
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_failed_read_names_the_source_and_the_offset(case: Case) -> None:
    case.break_at(4 * MIB)
    with pytest.raises(SourceReadError, match=rf"{case.source.name}\b.*\b({5 * MIB}|{4 * MIB})\b"):
        read(case.source, 5 * MIB, MIB)
    if case.fails_in_part:
        assert read(case.source, 3 * MIB, MIB) == CONTENT[3 * MIB : 4 * MIB]


def test_read_across_the_point_of_failure_is_never_short(case: Case) -> None:
    case.break_at(4 * MIB)
    with pytest.raises(SourceReadError):
        read(case.source, 3 * MIB, 2 * MIB)


def test_quiet_source_is_quiet(case: Case) -> None:
    read(case.source, 0, SIZE)
    case.source.still_quiet()


def test_writer_that_comes_during_the_read_is_found_at_the_end(case: Case) -> None:
    case.disturb()
    with pytest.raises(SourceBusy, match="is open for writing by"):
        case.source.still_quiet()


def test_closed_source_refuses_reads_and_may_be_closed_again(case: Case) -> None:
    case.source.close()
    case.source.close()
    with pytest.raises(ValueError, match="closed"):
        read(case.source, 0, 512)
