import os
import random
import time
from mmap import mmap
from pathlib import Path

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.errors import (
    DatastoreError,
    SourceMissing,
    SourceUnsuitable,
    TransferError,
    UsageError,
)
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_receiver import vmdk
from flatship_receiver.journal import ImageRecord, ImageState, Journal
from flatship_receiver.verify import Check, DiskMissing, FlatFile, Verdict, verify

MIB = CHUNK_SIZE
UUID = vmdk.make_uuid(bytes(range(16)))


class PublishedDisk:
    """A disk as the receiver leaves it, its source, and the journal that knows of it."""

    def __init__(
        self,
        folder: Path,
        size: int,
        data: dict[int, bytes],
        disk_format: DiskFormat = DiskFormat.VMFS,
    ) -> None:
        self.folder = folder
        self.size = size
        self.capacity = vmdk.round_capacity(size)
        self.path = folder / "web01.vmdk"
        layout = vmdk.Layout(disk_format, Provisioning.THIN, Adapter.LSILOGIC, 14)
        self.path.write_bytes(vmdk.build("web01", self.capacity, layout, UUID, bytes(range(16))))
        self.extents = vmdk.extent_files("web01", self.capacity, disk_format)
        self.flat = folder / self.extents[0].name
        for extent in self.extents:
            with (folder / extent.name).open("wb") as file:
                file.truncate(extent.length)
        self.source = folder / "source.raw"
        with self.source.open("wb") as file:
            file.truncate(size)
        for offset, content in data.items():
            self.write(offset, content)
            with self.source.open("r+b") as file:
                file.seek(offset)
                file.write(content)
        self.root, self.segments = self._digests(data)
        self.journal = Journal.open(folder / "state")

    def write(self, offset: int, content: bytes) -> None:
        """Change the target; a piece must lie within one extent."""
        for extent in self.extents:
            if extent.offset <= offset < extent.offset + extent.length:
                with (self.folder / extent.name).open("r+b") as file:
                    file.seek(offset - extent.offset)
                    file.write(content)

    def record(self, state: ImageState = ImageState.COMPLETE) -> None:
        self.journal.begin_image(
            ImageRecord(
                uuid=UUID,
                peer=b"P" * 32,
                datastore="ssd1",
                vm="web01",
                disk="web01",
                size=self.size,
                capacity=self.capacity,
                source_id=b"I" * 32,
                created=1.0,
            )
        )
        self.journal.hold(
            UUID, ((number * 1024, len(held) // 32, held) for number, held in self.segments.items())
        )
        self.journal.set_state(UUID, state, when=2.0, root=self.root)

    def verify(self, **options) -> Verdict:
        return verify(self.path, self.journal, **options)

    def _digests(self, data: dict[int, bytes]) -> tuple[bytes, dict[int, bytes]]:
        segments: dict[int, bytes] = {}
        manifest = Manifest(self.size, segments.__setitem__)
        with self.source.open("rb") as file:
            for index in sorted({offset // MIB for offset in data}):
                file.seek(index * MIB)
                manifest.set_chunk(index, chunk_digest(file.read(MIB)))
        for first, count in list(manifest.missing()):
            manifest.set_zeros(first, count)
        return manifest.root(), segments


def pieces() -> dict[int, bytes]:
    noise = random.Random(5)
    return {at * MIB: noise.randbytes(MIB) for at in (0, 1, 2, 3, 4, 5, 17, 30)}


@pytest.fixture
def make(tmp_path):
    made: list[PublishedDisk] = []

    def maker(size=40 * MIB + 1536, data=None, disk_format=DiskFormat.VMFS):
        data = pieces() if data is None else data
        made.append(PublishedDisk(tmp_path, size, data, disk_format))
        return made[-1]

    yield maker
    for disk in made:
        disk.journal.close()


def failed(verdict: Verdict) -> Check:
    """The one check that failed."""
    assert not verdict.ok
    (check,) = [check for check in verdict.checks if not check.ok]
    return check


@pytest.mark.parametrize("disk_format", DiskFormat)
def test_a_disk_that_agrees_with_record_and_source_passes(make, disk_format):
    disk = make(disk_format=disk_format)
    disk.record()
    verdict = disk.verify(against=disk.source)
    assert verdict.ok, verdict
    assert [check.name for check in verdict.checks] == [
        "descriptor",
        "extents",
        "digest",
        "source",
    ]
    assert verdict.root == disk.root
    assert verdict.bytes_read == 2 * len(pieces()) * MIB


def test_a_split_disk_is_read_across_its_extents(make):
    step = vmdk.SPLIT_EXTENT_SECTORS * 512
    data = {step - MIB: b"a" * MIB, step: b"b" * MIB, 2 * step + MIB: b"c" * 512}
    disk = make(2 * step + 5 * MIB, data, DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
    disk.record()
    assert len(disk.extents) == 3
    assert disk.verify(against=disk.source).ok
    disk.write(2 * step + MIB + 100, b"X")
    verdict = disk.verify(against=disk.source)
    digest, source = verdict.checks[2:]
    assert digest.offset == 2 * step + MIB
    assert source.offset == 2 * step + MIB + 100


@pytest.mark.parametrize("place", [0, 2 * MIB + 12345, 17 * MIB + MIB - 1, 25 * MIB + 7])
def test_a_flipped_bit_is_found_at_its_chunk_and_at_its_byte(make, place):
    disk = make()
    disk.record()
    with disk.flat.open("rb") as file:
        file.seek(place)
        before = file.read(1)[0]
    disk.write(place, bytes([before ^ 0x10]))
    by_record = failed(disk.verify())
    assert (by_record.name, by_record.offset) == ("digest", place // MIB * MIB)
    by_source = disk.verify(against=disk.source).checks[-1]
    assert (by_source.name, by_source.ok, by_source.offset) == ("source", False, place)
    assert str(place) in by_source.detail


def test_a_disk_that_differs_has_no_root(make):
    disk = make()
    disk.record()
    disk.write(9, b"changed")
    assert disk.verify().root is None


def test_a_tail_that_is_not_zero_is_found(make):
    disk = make()
    disk.record()
    disk.write(disk.size + 77, b"\x01")
    digest, source = disk.verify(against=disk.source).checks[2:]
    assert (digest.ok, digest.offset) == (False, disk.size + 77)
    assert (source.ok, source.offset) == (False, disk.size + 77)


def test_zeros_that_are_written_equal_a_hole(make):
    disk = make()
    disk.record()
    disk.write(10 * MIB, bytes(3 * MIB))
    assert disk.verify(against=disk.source).ok


@pytest.mark.parametrize("change", [-MIB, -1, 512, MIB])
def test_an_extent_of_another_length_is_found(make, change):
    disk = make()
    disk.record()
    os.truncate(disk.flat, disk.capacity + change)
    check = failed(disk.verify())
    assert check.name == "extents"
    assert str(disk.capacity + change) in check.detail
    assert str(disk.capacity) in check.detail


def test_an_extent_that_is_missing_a_link_or_no_file_is_found(make):
    disk = make()
    disk.record()
    moved = disk.flat.rename(disk.folder / "elsewhere")
    assert "No such file" in failed(disk.verify()).detail
    disk.flat.symlink_to(moved)
    assert "symbolic link" in failed(disk.verify()).detail
    disk.flat.unlink()
    os.mkfifo(disk.flat)
    assert "not a regular file" in failed(disk.verify()).detail
    disk.flat.unlink()
    disk.flat.mkdir()
    assert failed(disk.verify()).name == "extents"


def test_a_missing_part_of_a_split_disk_is_found_and_no_file_stays_open(make):
    step = vmdk.SPLIT_EXTENT_SECTORS * 512
    disk = make(step + MIB, {}, DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
    (disk.folder / "web01-f002.vmdk").unlink()
    before = len(os.listdir("/proc/self/fd"))
    assert "web01-f002.vmdk" in failed(disk.verify()).detail
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'createType="vmfs"', b'createType="vmfsThin"'),
        (b'cylinders = "', b'cylinders = "9'),
        (b"RW ", b"RW 1"),
        (b"web01-flat.vmdk", b"../web01-flat.vmdk"),
        (b"web01-flat.vmdk", b"/etc/passwd"),
        (b"version=1", b"version=1\nversion=1"),
        (b"CID=", b"CID=x"),
    ],
)
def test_an_edited_descriptor_is_found(make, old, new):
    disk = make()
    disk.record()
    disk.path.write_bytes(disk.path.read_bytes().replace(old, new, 1))
    verdict = disk.verify()
    assert failed(verdict).name == "descriptor"
    assert len(verdict.checks) == 1


def test_another_uuid_is_not_on_record(make):
    disk = make()
    disk.record()
    other = vmdk.format_uuid(vmdk.make_uuid(b"\xee" * 16)).encode()
    text = disk.path.read_bytes().replace(vmdk.format_uuid(UUID).encode(), other)
    disk.path.write_bytes(text)
    check = failed(disk.verify())
    assert check.name == "digest"
    assert "not on record" in check.detail


def test_without_record_and_source_nothing_is_proven(make):
    disk = make()
    assert "nothing can be proven" in failed(disk.verify()).detail
    assert "nothing can be proven" in failed(verify(disk.path, None)).detail


def test_the_source_alone_can_decide(make):
    disk = make()
    assert verify(disk.path, None, against=disk.source).ok
    disk.write(3, b"?")
    assert failed(verify(disk.path, None, against=disk.source)).offset == 3


@pytest.mark.parametrize("state", [ImageState.RECEIVING, ImageState.PUBLISHING])
def test_a_disk_that_is_not_complete_on_record_is_not_proven(make, state):
    disk = make()
    disk.record(state)
    assert str(state) in failed(disk.verify()).detail


def test_a_disk_grown_since_it_was_recorded_is_not_proven(make):
    disk = make(40 * MIB)
    disk.record()
    layout = vmdk.Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
    disk.path.write_bytes(vmdk.build("web01", 41 * MIB, layout, UUID, bytes(range(16))))
    os.truncate(disk.flat, 41 * MIB)
    check = failed(disk.verify())
    assert check.name == "digest"
    assert str(40 * MIB) in check.detail


def test_a_record_of_another_root_is_not_agreed_with(make):
    disk = make()
    disk.root = b"\x01" * 32
    disk.record()
    check = failed(disk.verify())
    assert (check.name, check.offset) == ("digest", None)
    assert "not the one on record" in check.detail


def test_a_digest_segment_missing_from_the_record_is_not_taken_as_agreement(make):
    disk = make()
    disk.segments.clear()
    disk.record()
    check = failed(disk.verify())
    assert (check.name, check.offset) == ("digest", 0)


@pytest.mark.parametrize("change", [-2 * MIB, 512 - MIB, MIB])
def test_a_source_of_another_size_is_not_this_disks(make, change):
    disk = make(40 * MIB)
    disk.record()
    os.truncate(disk.source, disk.size + change)
    verdict = disk.verify(against=disk.source)
    if change == 512 - MIB:  # rounds up to the same capacity
        assert verdict.ok
    else:
        assert failed(verdict).name == "source"


def test_data_only_in_the_source_is_found(make):
    disk = make()
    with disk.source.open("r+b") as file:
        file.seek(35 * MIB + 1)
        file.write(b"late")
    assert failed(disk.verify(against=disk.source)).offset == 35 * MIB + 1


def test_an_odd_sized_source_is_read_to_its_last_byte(make):
    disk = make(40 * MIB)
    os.truncate(disk.source, 40 * MIB - 1)
    assert disk.verify(against=disk.source).ok
    disk.write(40 * MIB - 1, b"\x01")
    assert failed(disk.verify(against=disk.source)).offset == 40 * MIB - 1


def test_a_disk_is_not_compared_with_itself(make):
    disk = make()
    link = disk.folder / "link"
    link.symlink_to(disk.flat)
    for same in (disk.flat, link):
        with pytest.raises(UsageError, match="this very disk"):
            disk.verify(against=same)


def test_what_is_missing_ends_with_not_found(make):
    disk = make()
    with pytest.raises(DiskMissing) as missing:
        verify(disk.folder / "none.vmdk", disk.journal)
    assert missing.value.exit_code == 10
    with pytest.raises(SourceMissing) as missing_source:
        disk.verify(against=disk.folder / "none.raw")
    assert missing_source.value.exit_code == 10


def test_a_source_that_is_no_disk_is_refused(make):
    disk = make()
    os.mkfifo(disk.folder / "fifo")
    for wrong in (disk.folder, disk.folder / "fifo", Path("/dev/zero")):
        with pytest.raises(SourceUnsuitable):
            disk.verify(against=wrong)


def test_a_flat_extent_a_folder_and_a_fifo_are_no_descriptors(make):
    disk = make()
    os.mkfifo(disk.folder / "fifo.vmdk")
    for wrong in (disk.flat, disk.folder, disk.folder / "fifo.vmdk"):
        assert failed(verify(wrong, disk.journal)).name == "descriptor"


def test_a_descriptor_is_found_through_a_link(make, tmp_path):
    disk = make()
    disk.record()
    (tmp_path / "aside").mkdir()
    link = tmp_path / "aside" / "web01.vmdk"
    link.symlink_to(disk.path)
    assert verify(link, disk.journal).ok


def test_no_garbage_in_the_descriptor_is_an_uncaught_error(make):
    disk = make()
    disk.record()
    good = disk.path.read_bytes()
    noise = random.Random(11)
    for _ in range(300):
        text = bytearray(good)
        for _ in range(noise.randrange(1, 4)):
            at = noise.randrange(len(text))
            match noise.randrange(3):
                case 0:
                    text[at] = noise.randrange(256)
                case 1:
                    del text[at : at + noise.randrange(40)]
                case _:
                    text[at:at] = noise.randbytes(noise.randrange(1, 9))
        disk.path.write_bytes(text)
        try:
            disk.verify()
        except TransferError as error:
            pytest.fail(f"raised {error!r} for {bytes(text)!r}")
    for text in (b"", b"\0" * 70000, good * 40, b"# Disk DescriptorFile\n"):
        disk.path.write_bytes(text)
        assert failed(disk.verify()).name == "descriptor"


def test_progress_runs_once_from_nothing_to_all(make):
    disk = make()
    disk.record()
    told: list[tuple[int, int]] = []
    disk.verify(against=disk.source, progress=lambda *amounts: told.append(amounts))
    total = 2 * len(pieces()) * MIB
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_eight_tebibytes_with_a_little_data_are_judged_by_the_data(make):
    size = 8 << 40
    disk = make(size, {0: b"boot" * 1000, (5 << 40) + 512: b"data", size - 512: b"x" * 512})
    disk.record()
    started = time.process_time()
    verdict = disk.verify(against=disk.source)
    assert verdict.ok, verdict
    assert time.process_time() - started < 5  # seconds; a step for each chunk takes longer
    assert verdict.bytes_read == 2 * 3 * MIB


def test_a_file_is_read_through_the_cache_where_direct_reads_are_refused(tmp_path):
    content = random.Random(3).randbytes(10000)
    (tmp_path / "file").write_bytes(content)
    file = FlatFile.open(str(tmp_path / "file"))
    buffer = bytearray(777)
    file.read_into(memoryview(buffer), 9001)
    file.close()
    assert buffer == content[9001:9778]


def test_a_file_that_shrank_is_an_error_and_no_endless_loop(make):
    disk = make()
    file = FlatFile.open(str(disk.flat))
    os.truncate(disk.flat, 2 * MIB)
    with pytest.raises(DatastoreError, match="too early"):
        file.read_into(memoryview(mmap(-1, 2 * MIB)), MIB)
    file.close()
