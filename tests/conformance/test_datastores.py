"""What every datastore and every image in it promises; see ``datastores/base.py``."""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.errors import DatastoreError, DiskError, ErrorCode
from flatship_protocol.extents import ExtentKind
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import Datastore, Image, ImageRequest, View
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.datastores.memory import MemoryDatastore
from flatship_receiver.datastores.null import NullDatastore
from flatship_receiver.vmdk import Layout

MIB = 1 << 20
PAGE = 4096
CAPACITY = 8 * MIB
STEP = vmdk.SPLIT_EXTENT_SECTORS * SECTOR_SIZE  # bytes of a full split extent
THIN = Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
REQUEST = ImageRequest("web", "web01", CAPACITY, THIN, replace=False)

Published = Callable[[], set[str]]


@pytest.fixture(params=["local on disk", "local on tmpfs", "memory"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, tmpfs_path: Path
) -> Iterator[tuple[Datastore, Published]]:
    """A datastore, and a look from outside at the descriptors of the VM ``web`` in it."""
    if request.param == "memory":
        memory = MemoryDatastore("here", 64 * MIB)
        yield memory, lambda: {f"{disk}.vmdk" for vm, disk in memory.disks if vm == "web"}
        return
    path = tmpfs_path if "tmpfs" in request.param else tmp_path
    local = LocalDatastore("here", str(path))
    yield local, lambda: {entry.name for entry in path.glob("web/*.vmdk") if "-" not in entry.name}
    local.close()


@pytest.fixture
def tmpfs_path() -> Iterator[Path]:
    """A folder in memory: another file system, with other abilities."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def datastore(place: tuple[Datastore, Published]) -> Datastore:
    return place[0]


@pytest.fixture
def published(place: tuple[Datastore, Published]) -> Published:
    return place[1]


def descriptor_for(request: ImageRequest, number: int = 1) -> bytes:
    uuid = vmdk.make_uuid(number.to_bytes(16, "big"))
    return vmdk.build(request.disk, request.capacity, request.layout, uuid, bytes(16))


def with_layout(provisioning: Provisioning, disk_format: DiskFormat) -> ImageRequest:
    return replace(REQUEST, layout=replace(THIN, provisioning=provisioning, format=disk_format))


def read(image: Image, offset: int, length: int) -> bytes:
    start = offset % PAGE
    size = -(-(start + length) // PAGE) * PAGE
    with mmap.mmap(-1, size) as buffer, memoryview(buffer) as view:
        image.read_into(view, offset - start)
        return bytes(view[start : start + length])


def code_of(attempt: Callable[[], object]) -> ErrorCode:
    with pytest.raises(DiskError) as caught:
        attempt()
    return caught.value.code


@pytest.mark.parametrize("provisioning", Provisioning)
@pytest.mark.parametrize("disk_format", DiskFormat)
def test_fresh_image_reads_as_zeros(
    datastore: Datastore, provisioning: Provisioning, disk_format: DiskFormat
) -> None:
    image = datastore.create(with_layout(provisioning, disk_format))
    assert image.capacity == CAPACITY
    assert read(image, 0, CAPACITY) == bytes(CAPACITY)
    image.abort()


@pytest.mark.parametrize("provisioning", Provisioning)
@pytest.mark.parametrize("flushed", [True, False])
def test_random_writes_and_zeros_read_back(
    datastore: Datastore, provisioning: Provisioning, flushed: bool
) -> None:
    random = Random(7)
    model = bytearray(CAPACITY)
    image = datastore.create(with_layout(provisioning, DiskFormat.VMFS))
    for _ in range(60):
        offset = random.randrange(CAPACITY // 512) * 512
        length = min(random.randrange(1, 3 * MIB // 512) * 512, CAPACITY - offset)
        if random.random() < 0.5:
            model[offset : offset + length] = data = random.randbytes(length)
            image.write(offset, memoryview(data))
        else:
            model[offset : offset + length] = bytes(length)
            image.zero(offset, length)
    if flushed:
        image.flush()
    assert read(image, 0, CAPACITY) == model
    for run in image.extents():
        if run.kind is ExtentKind.HOLE:
            assert not any(model[run.offset : run.end])
    image.abort()


@pytest.mark.parametrize("disk_format", [DiskFormat.VMFS, DiskFormat.TWO_GB_MAX_EXTENT_FLAT])
@pytest.mark.parametrize("provisioning", Provisioning)
def test_what_was_written_last_is_read_before_and_after_the_flush(
    datastore: Datastore, provisioning: Provisioning, disk_format: DiskFormat
) -> None:
    random = Random(11)
    model = bytearray(CAPACITY)
    image = datastore.create(with_layout(provisioning, disk_format))
    for number in range(60):
        offset = random.randrange(CAPACITY // 512) * 512
        length = min(random.randrange(1, 300) * 512, CAPACITY - offset)
        if number % 5:
            model[offset : offset + length] = data = random.randbytes(length)
            image.write(offset, memoryview(data))
        else:
            model[offset : offset + length] = bytes(length)
            image.zero(offset, length)
        if number % 7 == 0:
            image.flush()
        start = max(0, offset - random.randrange(3000))
        found = bytearray(min(length + 5000, CAPACITY - start))  # aligned to nothing
        image.read_latest(memoryview(found), start)
        assert found == model[start : start + len(found)]
    found = bytearray(CAPACITY)
    image.read_latest(memoryview(found), 0)
    assert found == model
    image.abort()


def test_what_was_written_last_is_there_when_an_image_is_resumed(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    image.write(5 * PAGE, memoryview(b"x" * MIB))
    image.flush()
    image.close()
    image = datastore.resume(REQUEST)
    assert image is not None
    image.write(6 * PAGE, memoryview(b"y" * 512))
    found = bytearray(MIB)
    image.read_latest(memoryview(found), 5 * PAGE)
    assert found == b"x" * PAGE + b"y" * 512 + b"x" * (MIB - PAGE - 512)
    image.abort()


def test_extents_cover_the_image_once_in_order(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    for offset in (0, 3 * MIB, 7 * MIB):
        image.write(offset, memoryview(b"x" * MIB))
    image.flush()
    position = 0
    for run in image.extents():
        assert run.offset == position
        assert run.length > 0
        assert run.offset % PAGE == 0
        position = run.end
    assert position == CAPACITY
    holes = [(e.offset, e.length) for e in image.extents() if e.kind is ExtentKind.HOLE]
    assert holes == [(MIB, 2 * MIB), (4 * MIB, 3 * MIB)]
    image.abort()


def test_zeroed_thin_chunk_becomes_a_hole(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * 2 * MIB))
    image.flush()
    image.zero(0, MIB)
    image.flush()
    first, *_ = image.extents()
    assert (first.offset, first.length, first.kind) == (0, MIB, ExtentKind.HOLE)
    image.abort()


def test_concurrent_writes_of_different_chunks_all_arrive(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    chunks = [Random(n).randbytes(MIB) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for n, chunk in enumerate(chunks):
            pool.submit(image.write, n * MIB, memoryview(chunk))
            pool.submit(image.flush)
    image.flush()
    assert read(image, 0, CAPACITY) == b"".join(chunks)
    image.abort()


@pytest.mark.parametrize("offset", [-512, CAPACITY - MIB + 512, CAPACITY])
def test_nothing_reaches_past_the_end(datastore: Datastore, offset: int) -> None:
    image = datastore.create(REQUEST)
    with pytest.raises(ValueError, match="past the end"):
        image.write(offset, memoryview(bytes(MIB)))
    with pytest.raises(ValueError, match="past the end"):
        image.zero(offset, MIB)
    with pytest.raises(ValueError, match=r"past the end|page-aligned"):
        image.read_into(memoryview(bytearray(MIB)), offset)
    with pytest.raises(ValueError, match="past the end"):
        image.read_latest(memoryview(bytearray(MIB)), offset)
    image.abort()


def test_misaligned_read_is_refused(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    for offset, length in ((512, PAGE), (0, 512)):
        with pytest.raises(ValueError, match="page-aligned"):
            image.read_into(memoryview(bytearray(length)), offset)
    image.abort()


@pytest.mark.parametrize("disk_format", DiskFormat)
def test_disk_is_visible_after_commit_and_not_before(
    datastore: Datastore, published: Published, disk_format: DiskFormat
) -> None:
    request = with_layout(Provisioning.THIN, disk_format)
    image = datastore.create(request)
    image.write(0, memoryview(b"x" * MIB))
    image.flush()
    assert published() == set()
    image.commit(descriptor_for(request))
    assert published() == {"web01.vmdk"}
    image.close()
    assert published() == {"web01.vmdk"}


def test_split_image_takes_writes_across_its_extents(tmpfs_path: Path) -> None:
    datastore = LocalDatastore("here", str(tmpfs_path))
    request = replace(
        with_layout(Provisioning.THIN, DiskFormat.TWO_GB_MAX_EXTENT_FLAT), capacity=STEP + 2 * MIB
    )
    image = datastore.create(request)
    data = Random(1).randbytes(2 * MIB)
    image.write(STEP - MIB, memoryview(data))
    image.flush()
    assert read(image, STEP - MIB, 2 * MIB) == data
    assert sum(run.length for run in image.extents()) == request.capacity
    image.zero(STEP - PAGE, 2 * PAGE)
    assert read(image, STEP - 2 * PAGE, 4 * PAGE).count(0) >= 2 * PAGE
    image.commit(descriptor_for(request))
    image.close()
    assert (tmpfs_path / "web/web01-f002.vmdk").stat().st_size == 2 * MIB
    datastore.close()


def test_aborted_image_leaves_nothing(
    datastore: Datastore, published: Published, tmp_path: Path, tmpfs_path: Path
) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    image.abort()
    image.abort()
    assert published() == set()
    datastore.create(REQUEST).abort()
    assert list(tmp_path.iterdir()) == []
    assert list(tmpfs_path.iterdir()) == []


def test_abort_after_commit_removes_nothing(datastore: Datastore, published: Published) -> None:
    image = datastore.create(REQUEST)
    image.commit(descriptor_for(REQUEST))
    image.abort()
    assert published() == {"web01.vmdk"}


def test_closed_image_refuses_everything(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    image.close()
    image.close()
    for attempt in (
        lambda: image.write(0, memoryview(b"x")),
        lambda: image.zero(0, MIB),
        image.flush,
        lambda: read(image, 0, PAGE),
        lambda: image.read_latest(memoryview(bytearray(PAGE)), 0),
        lambda: list(image.extents()),
        lambda: image.commit(descriptor_for(REQUEST)),
    ):
        with pytest.raises(ValueError, match="closed"):
            attempt()


def test_published_disk_can_no_longer_be_written(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    image.commit(descriptor_for(REQUEST))
    with pytest.raises(ValueError, match="closed"):
        image.write(0, memoryview(b"x"))


def test_image_closed_halfway_is_replaced_by_a_fresh_one(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    image.flush()
    image.close()
    again = datastore.create(with_layout(Provisioning.THIN, DiskFormat.TWO_GB_MAX_EXTENT_FLAT))
    assert read(again, 0, CAPACITY) == bytes(CAPACITY)
    again.abort()


def test_disk_that_is_being_written_is_busy(datastore: Datastore) -> None:
    image = datastore.create(REQUEST)
    assert code_of(lambda: datastore.check(REQUEST)) is ErrorCode.DISK_BUSY
    assert code_of(lambda: datastore.create(REQUEST)) is ErrorCode.DISK_BUSY
    other = datastore.create(replace(REQUEST, disk="web02"))
    other.abort()
    image.write(0, memoryview(b"x" * MIB))
    assert read(image, 0, MIB) == b"x" * MIB
    image.close()
    datastore.create(REQUEST).abort()


def test_disk_that_exists_is_replaced_only_when_asked(
    datastore: Datastore, published: Published
) -> None:
    image = datastore.create(REQUEST)
    image.commit(descriptor_for(REQUEST))
    image.close()
    assert code_of(lambda: datastore.check(REQUEST)) is ErrorCode.DISK_EXISTS
    assert code_of(lambda: datastore.create(REQUEST)) is ErrorCode.DISK_EXISTS
    request = replace(REQUEST, replace=True)
    datastore.check(request)
    datastore.create(request).abort()
    assert published() == {"web01.vmdk"}
    image = datastore.create(request)
    image.write(0, memoryview(b"y" * MIB))
    assert published() == {"web01.vmdk"}
    image.commit(descriptor_for(request, 2))
    image.close()
    assert published() == {"web01.vmdk"}


def test_descriptor_is_the_one_of_the_disk_published_last(datastore: Datastore) -> None:
    assert datastore.descriptor("web", "web01") is None
    image = datastore.create(REQUEST)
    assert datastore.descriptor("web", "web01") is None
    image.commit(descriptor_for(REQUEST))
    assert datastore.descriptor("web", "web01") == descriptor_for(REQUEST)
    assert datastore.descriptor("web", "web02") is None
    image = datastore.create(replace(REQUEST, replace=True))
    assert datastore.descriptor("web", "web01") == descriptor_for(REQUEST)
    image.commit(descriptor_for(REQUEST, 2))
    assert datastore.descriptor("web", "web01") == descriptor_for(REQUEST, 2)


@pytest.mark.parametrize(("vm", "disk"), [("..", "x"), ("x", "../x"), ("x", "x-flat"), ("", "x")])
def test_bad_names_are_refused(datastore: Datastore, vm: str, disk: str) -> None:
    request = replace(REQUEST, vm=vm, disk=disk)
    assert code_of(lambda: datastore.check(request)) is ErrorCode.NAME_REFUSED
    assert code_of(lambda: datastore.create(request)) is ErrorCode.NAME_REFUSED
    assert code_of(lambda: datastore.descriptor(vm, disk)) is ErrorCode.NAME_REFUSED


@pytest.mark.parametrize("provisioning", [Provisioning.THICK, Provisioning.EAGER])
def test_allocated_disk_larger_than_the_free_space_is_refused(
    datastore: Datastore, published: Published, provisioning: Provisioning
) -> None:
    free = datastore.space().free
    capacity = vmdk.round_capacity(free + MIB * MIB)
    request = replace(with_layout(provisioning, DiskFormat.VMFS), capacity=capacity)
    for attempt in (datastore.check, datastore.create):
        with pytest.raises(DatastoreError) as caught:
            attempt(request)
        assert caught.value.code is ErrorCode.DATASTORE_FULL
        assert caught.value.numbers[0] == capacity
        assert 0 <= caught.value.numbers[1] < capacity
    assert published() == set()


def test_check_creates_nothing(datastore: Datastore, tmp_path: Path, tmpfs_path: Path) -> None:
    datastore.check(REQUEST)
    assert list(tmp_path.iterdir()) == []
    assert list(tmpfs_path.iterdir()) == []


def test_recovery_of_a_sound_datastore_changes_nothing(
    datastore: Datastore, published: Published
) -> None:
    datastore.create(REQUEST).close()
    image = datastore.create(replace(REQUEST, disk="web02"))
    image.commit(descriptor_for(replace(REQUEST, disk="web02")))
    image.close()
    recovery = datastore.recover()
    assert (recovery.finished, recovery.failed) == ((), ())
    assert published() == {"web02.vmdk"}


def test_null_datastore_takes_all_and_reads_as_zeros() -> None:
    datastore = NullDatastore("nowhere")
    assert datastore.name == "nowhere"
    assert code_of(lambda: datastore.check(replace(REQUEST, vm=".."))) is ErrorCode.NAME_REFUSED
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    image.zero(0, MIB)
    image.flush()
    assert read(image, 0, PAGE) == bytes(PAGE)
    assert [(e.length, e.kind) for e in image.extents()] == [(CAPACITY, ExtentKind.HOLE)]
    image.commit(descriptor_for(REQUEST))
    image.close()
    image.abort()
    assert datastore.descriptor("web", "web01") is None
    datastore.close()


def test_what_was_flushed_is_there_when_an_image_is_resumed(
    datastore: Datastore, published: Published
) -> None:
    image = datastore.create(REQUEST)
    image.write(MIB, memoryview(b"x" * MIB))
    image.write(3 * MIB, memoryview(b"y" * MIB))
    image.flush()
    image.close()
    again = datastore.resume(REQUEST)
    assert again is not None
    assert again.capacity == CAPACITY
    assert read(again, 0, 4 * MIB) == bytes(MIB) + b"x" * MIB + bytes(MIB) + b"y" * MIB
    again.zero(MIB, MIB)  # what an earlier process wrote must not pass for never written
    again.write(2 * MIB, memoryview(b"z" * MIB))
    again.flush()
    assert read(again, MIB, 2 * MIB) == bytes(MIB) + b"z" * MIB
    again.commit(descriptor_for(REQUEST))
    assert published() == {"web01.vmdk"}


def test_only_the_image_of_that_uuid_is_resumed(datastore: Datastore) -> None:
    other = replace(REQUEST, uuid=bytes(15) + b"o")
    assert datastore.resume(REQUEST) is None
    datastore.create(REQUEST).close()
    assert datastore.resume(other) is None
    again = datastore.resume(REQUEST)
    assert again is not None
    with pytest.raises(DatastoreError) as busy:
        datastore.resume(REQUEST)
    assert busy.value.code is ErrorCode.DISK_BUSY
    again.abort()
    assert datastore.resume(REQUEST) is None


def test_an_image_that_was_made_anew_is_not_the_former_one(datastore: Datastore) -> None:
    other = replace(REQUEST, uuid=bytes(15) + b"o")
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    image.flush()
    image.close()
    datastore.create(other).close()
    assert datastore.resume(REQUEST) is None
    again = datastore.resume(other)
    assert again is not None
    assert read(again, 0, MIB) == bytes(MIB)
    again.abort()


# Views


UUID = vmdk.make_uuid((1).to_bytes(16, "big"))
OTHER = vmdk.make_uuid((2).to_bytes(16, "big"))
NAMED = replace(REQUEST, uuid=UUID)
CONTENT = Random(3).randbytes(3 * MIB)


def written(datastore: Datastore, request: ImageRequest = NAMED, content: bytes = CONTENT) -> Image:
    image = datastore.create(request)
    image.write(2 * MIB, memoryview(content))
    image.flush()
    return image


def view(datastore: Datastore, uuid: bytes = UUID, capacity: int = CAPACITY) -> View | None:
    return datastore.view("web", "web01", capacity, uuid)


def read_view(opened: View | None, offset: int, length: int) -> bytes:
    assert opened is not None
    buffer = memoryview(bytearray(length))
    opened.read(buffer, offset)
    return bytes(buffer)


@pytest.mark.parametrize("disk_format", DiskFormat)
@pytest.mark.parametrize("is_published", [True, False])
def test_view_shows_what_stands(
    datastore: Datastore, disk_format: DiskFormat, is_published: bool
) -> None:
    request = replace(NAMED, layout=replace(THIN, format=disk_format))
    image = written(datastore, request)
    image.commit(descriptor_for(request)) if is_published else image.close()
    opened = view(datastore)
    assert read_view(opened, 0, CAPACITY) == bytes(2 * MIB) + CONTENT + bytes(3 * MIB)
    assert read_view(opened, 2 * MIB + 511, 5000) == CONTENT[511:5511]
    assert opened is not None
    opened.close()


def test_view_over_several_extents(tmp_path: Path) -> None:
    datastore = LocalDatastore("here", str(tmp_path))
    layout = replace(THIN, format=DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
    capacity = STEP + 8 * MIB
    image = datastore.create(replace(NAMED, layout=layout, capacity=capacity))
    image.write(STEP - MIB, memoryview(CONTENT))
    image.close()
    opened = view(datastore, capacity=capacity)
    assert read_view(opened, STEP - MIB, len(CONTENT)) == CONTENT
    assert opened is not None
    opened.close()
    datastore.close()


@pytest.mark.parametrize("is_published", [True, False])
def test_view_is_of_the_image_that_was_asked_for(datastore: Datastore, is_published: bool) -> None:
    image = written(datastore)
    image.commit(descriptor_for(NAMED)) if is_published else image.close()
    assert view(datastore, OTHER) is None
    assert view(datastore, capacity=CAPACITY + MIB) is None
    assert datastore.view("web", "web02", CAPACITY, UUID) is None
    assert datastore.view("nobody", "web01", CAPACITY, UUID) is None


def test_no_view_of_what_is_being_written(datastore: Datastore) -> None:
    image = written(datastore)
    assert code_of(lambda: view(datastore)) is ErrorCode.DISK_BUSY
    image.abort()
    assert view(datastore) is None


def test_published_disk_can_be_viewed_while_its_successor_is_written(datastore: Datastore) -> None:
    written(datastore).commit(descriptor_for(NAMED))
    following = datastore.create(replace(NAMED, uuid=OTHER, replace=True))
    opened = view(datastore)
    assert read_view(opened, 2 * MIB, MIB) == CONTENT[:MIB]
    following.abort()
    assert opened is not None
    opened.close()


def test_view_hinders_neither_resumption_nor_publication_nor_replacement(
    datastore: Datastore, published: Published
) -> None:
    written(datastore).close()
    first = view(datastore)
    resumed = datastore.resume(NAMED)
    assert resumed is not None
    resumed.commit(descriptor_for(NAMED))
    second = view(datastore)
    following = replace(NAMED, uuid=OTHER, replace=True)
    written(datastore, following, bytes(MIB)).commit(descriptor_for(following, 2))
    assert published() == {"web01.vmdk"}
    assert view(datastore) is None
    third = view(datastore, OTHER)
    assert read_view(third, 2 * MIB, MIB) == bytes(MIB)
    for opened in (first, second):  # what was open stays that of its image, and of no other
        assert read_view(opened, 2 * MIB, MIB) == CONTENT[:MIB]
    for opened in (first, second, third):
        assert opened is not None
        opened.close()


def test_view_of_an_incomplete_image_does_not_become_one_of_its_successor(
    datastore: Datastore,
) -> None:
    written(datastore).close()
    opened = view(datastore)
    image = written(datastore, replace(NAMED, uuid=OTHER), bytes(MIB))
    assert read_view(opened, 2 * MIB, MIB) == CONTENT[:MIB]
    image.close()
    assert view(datastore) is None
    assert opened is not None
    opened.close()


def test_view_ends_with_its_disk_and_with_close(datastore: Datastore) -> None:
    written(datastore).commit(descriptor_for(NAMED))
    opened = view(datastore)
    for offset, length in ((CAPACITY - 1, 2), (CAPACITY, 1), (-1, 1)):
        with pytest.raises(ValueError, match="past the end"):
            read_view(opened, offset, length)
    assert opened is not None
    opened.close()
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        read_view(opened, 0, 1)


def test_null_datastore_has_nothing_to_view() -> None:
    datastore = NullDatastore("nowhere")
    datastore.create(NAMED).commit(descriptor_for(NAMED))
    assert view(datastore) is None
