"""Decoders of the journal: rows that nobody wrote, and files that are no database."""

import atexit
import struct
from typing import Final

from flatship_receiver.journal import DATABASE_NAME, ImageRecord, Journal, JournalError
from fuzz.scratch import scratch_folder
from fuzz.target import Target

UUID: Final = bytes(range(16))
CHUNK: Final = 1 << 20  # bytes
SEGMENT: Final = 1 << 30  # bytes
KNOWN_SIZE: Final = 128  # bytes
FILES: Final = 2_000  # inputs; SQLite takes its time with each

RECORD: Final = ImageRecord(
    uuid=UUID,
    peer=bytes(32),
    datastore="ssd1",
    vm="web01",
    disk="web01",
    size=SEGMENT + 2 * CHUNK + 512,
    capacity=SEGMENT + 3 * CHUNK,
    source_id=bytes(32),
    created=1000.5,
    layout="vmfs",
)

_ROW: Final = struct.Struct(">BqqB")  # kinds of the columns, size, number, bytes of ``known``


class _Rows:
    """A journal with one image and one segment, whose columns a disk may have changed.

    All of it is one transaction that is never committed: nothing waits for a disk.
    """

    def __init__(self) -> None:
        self.journal = Journal.open(scratch_folder())
        atexit.register(self.journal.close)
        self.journal.begin_image(RECORD)
        self.journal.hold(UUID, [(0, 1, None)])
        self._database = self.journal._connection
        self._database.execute("BEGIN IMMEDIATE")

    def put(self, *columns: object) -> None:
        """Write size, number, ``known`` and digests; bytes in a list as text, UTF-8 or not."""
        size, number, known, digests = (
            "CAST(? AS TEXT)" if isinstance(column, list) else "?" for column in columns
        )
        values = [column[0] if isinstance(column, list) else column for column in columns]
        self._database.execute(f"UPDATE image SET size = {size}", values[:1])
        self._database.execute(
            f"UPDATE segment SET number = {number}, known = {known}, digests = {digests}",
            values[1:],
        )


_ROWS: Final = _Rows()


def read_rows(data: bytes) -> None:
    """What is read of a segment are chunks of the image, each with 32 bytes of digest."""
    if len(data) < _ROW.size:
        raise JournalError("no row")
    kinds, size, number, length = _ROW.unpack_from(data)
    known = data[_ROW.size : _ROW.size + length]
    digests = data[_ROW.size + length :]
    _ROWS.put(
        _as(kinds & 3, size, data[1:9]),
        _as(kinds >> 2 & 3, number, data[9:17]),
        None if length == 0 else _as(kinds >> 4 & 3, known, known),
        _as(kinds >> 6 & 3, digests, digests),
    )
    journal = _ROWS.journal
    assert [image.uuid for image in journal.images()] == [UUID]
    for found in journal.held_segments(UUID):
        runs = journal.held_in(UUID, found)
        whole = journal.segment(UUID, found)
        chunks = min(-(-size // CHUNK) - number * 1024, 1024)
        assert (found, chunks > 0) == (number, True)
        bits = (1 << chunks) - 1 if length == 0 else int.from_bytes(known, "little")
        held = [place for place in range(chunks) if bits >> place & 1]
        assert held == [
            place - number * 1024
            for first, count, _ in runs
            for place in range(first, first + count)
        ]
        assert (whole is not None) == (bits == (1 << chunks) - 1)
        for first, count, part in runs:
            at = (first - number * 1024) * 32
            assert part is None or part == digests[at : at + count * 32]


def _as(kind: int, value: object, raw: bytes) -> object:
    """A column's value: as it should be, or of another of SQLite's types."""
    if kind == 1:
        return [raw]
    if kind == 2:
        return float(len(raw)) + 0.5
    return value


def _row(size: int, number: int, known: bytes, digests: bytes, kinds: int = 0) -> bytes:
    return _ROW.pack(kinds, size, number, len(known)) + known + digests


DIGESTS: Final = bytes(range(96))
THREE: Final = 2 * CHUNK + 512  # bytes of a disk, or of a digest segment, of three chunks
ROW_SEEDS: Final = (
    _row(THREE, 0, b"", b""),
    _row(THREE, 0, b"", DIGESTS),
    _row(SEGMENT + THREE, 1, b"\x05".ljust(KNOWN_SIZE, b"\0"), DIGESTS),
    _row(100 * CHUNK, 0, b"\xf0" * KNOWN_SIZE, b""),
    _row(THREE, 0, b"\x07".ljust(KNOWN_SIZE, b"\0"), DIGESTS, kinds=0b01000000),
)

_FILE_FOLDER: Final = scratch_folder()


def read_file(data: bytes) -> None:
    """Whatever is in the file, it can be read or it is said to be damaged."""
    (_FILE_FOLDER / DATABASE_NAME).write_bytes(data)
    journal = Journal.open_read_only(_FILE_FOLDER)
    try:
        for image in journal.images():
            for number in journal.held_segments(image.uuid):
                journal.held_in(image.uuid, number)
                journal.segment(image.uuid, number)
            journal.resumable(image.datastore, image.vm, image.disk)
    finally:
        journal.close()


def _file_seed() -> bytes:
    folder = scratch_folder()
    journal = Journal.open(folder)
    journal.begin_image(RECORD)
    journal.hold(UUID, [(0, 900, None), (1024, 3, DIGESTS)])
    journal._connection.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
    journal.close()
    return (folder / DATABASE_NAME).read_bytes()


TARGETS: Final = (
    Target("journal-rows", read_rows, (JournalError,), ROW_SEEDS, memory=4 << 20),
    Target(
        "journal-file", read_file, (JournalError,), (_file_seed(),), memory=4 << 20, inputs=FILES
    ),
)
