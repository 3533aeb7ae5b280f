"""Streams with history; ``tests/fuzz`` goes on with payloads that nobody meant to make."""

import tracemalloc
from pathlib import Path
from random import Random

import pytest
import zstandard

from flatship_protocol.codec import HistoryDecoder, HistoryEncoder
from flatship_protocol.constants import CHUNK_SIZE, MAX_HISTORY_BLOCKS
from flatship_protocol.errors import CodecError

WINDOW_LOG = 20
HEADER = b"\x28\xb5\x2f\xfd\x00" + bytes([(WINDOW_LOG - 10) << 3])
NOISE = Random(5).randbytes(CHUNK_SIZE)
TEXT = b"sixteen bytes...." * 1000
KIB_128 = 128 << 10


def block(kind: int, size: int, content: bytes, *, last: bool = False) -> bytes:
    """A block of a frame: raw (0) or one byte repeated (1). RFC 8878, 3.1.1.2."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + content


RAW = block(0, 5, b"five.")


def decoded(decoder: HistoryDecoder, payload: bytes, length: int, *, begin: bool) -> bytes:
    out = bytearray(length)
    decoder.decode_into(payload, memoryview(out), begin=begin)
    return bytes(out)


def refused(payload: bytes, length: int, reason: str, *, begin: bool = True) -> HistoryDecoder:
    decoder = HistoryDecoder(WINDOW_LOG)
    with pytest.raises(CodecError, match=reason):
        decoded(decoder, payload, length, begin=begin)
    return decoder


@pytest.mark.parametrize("level", [-5, 1, 3, 9, 19])
@pytest.mark.parametrize("window_log", [10, 20, 22])
def test_each_payload_decodes_to_its_chunk_at_once(level: int, window_log: int) -> None:
    encoder, decoder = HistoryEncoder(level, window_log), HistoryDecoder(window_log)
    for data in (TEXT, NOISE, b"x", bytes(CHUNK_SIZE), NOISE[512:], TEXT[:512], NOISE):
        begin = encoder.begins
        payload = encoder.encode(data)
        assert len(payload) <= len(data) + (64 if window_log >= 17 else 4096)
        assert decoded(decoder, payload, len(data), begin=begin) == data


def test_what_came_before_is_not_sent_again() -> None:
    encoder = HistoryEncoder(3, 22)
    assert len(encoder.encode(NOISE)) > CHUNK_SIZE
    assert len(encoder.encode(TEXT)) < 1024
    assert len(encoder.encode(NOISE)) < 1024


def test_stream_that_is_begun_anew_needs_nothing_from_before() -> None:
    encoder = HistoryEncoder(3, WINDOW_LOG)
    assert encoder.begins
    encoder.encode(NOISE[:4096])
    assert not encoder.begins
    encoder.restart()
    assert encoder.begins
    payload = encoder.encode(NOISE[:4096])
    assert decoded(HistoryDecoder(WINDOW_LOG), payload, 4096, begin=True) == NOISE[:4096]


def test_decoder_begins_anew_where_it_is_told() -> None:
    decoder = HistoryDecoder(WINDOW_LOG)
    for _ in range(3):
        encoder = HistoryEncoder(3, WINDOW_LOG)
        for begin in (True, False):
            assert decoded(decoder, encoder.encode(TEXT), len(TEXT), begin=begin) == TEXT


@pytest.mark.parametrize("size", [0, CHUNK_SIZE + 1])
def test_encoder_takes_a_chunk_and_no_more(size: int) -> None:
    encoder = HistoryEncoder(3, WINDOW_LOG)
    with pytest.raises(ValueError, match=f"{size} bytes"):
        encoder.encode(bytes(size))
    assert encoder.begins


@pytest.mark.parametrize("window_log", [9, 28])
def test_windows_are_within_the_limits(window_log: int) -> None:
    for end in (HistoryDecoder, lambda log: HistoryEncoder(3, log)):
        with pytest.raises(ValueError, match="expected"):
            end(window_log)


def test_payload_may_lie_where_its_chunk_goes() -> None:
    payload = HistoryEncoder(3, WINDOW_LOG).encode(TEXT)
    frame = memoryview(bytearray(CHUNK_SIZE))
    frame[: len(payload)] = payload
    out = frame[: len(TEXT)]
    HistoryDecoder(WINDOW_LOG).decode_into(frame[: len(payload)], out, begin=True)
    assert out == TEXT


def test_payload_without_a_beginning_is_refused() -> None:
    refused(RAW, 5, "has not begun", begin=False)


def test_after_a_refusal_only_a_beginning_is_taken() -> None:
    encoder, decoder = HistoryEncoder(3, WINDOW_LOG), HistoryDecoder(WINDOW_LOG)
    decoded(decoder, encoder.encode(TEXT), len(TEXT), begin=True)
    payload = encoder.encode(TEXT)
    with pytest.raises(CodecError):
        decoded(decoder, payload, len(TEXT) - 1, begin=False)
    with pytest.raises(CodecError, match="has not begun"):
        decoded(decoder, payload, len(TEXT), begin=False)
    assert decoded(decoder, HEADER + RAW, 5, begin=True) == b"five."


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\x50\x2a\x4d\x18\x05\0\0\0skip!" + HEADER,
        HEADER[:4] + b"\x01" + HEADER[5:] + b"\x07",
        HEADER[:4] + b"\x04" + HEADER[5:],
        HEADER[:4] + b"\x08" + HEADER[5:],
        HEADER[:4] + b"\x20\x05",
        HEADER[:4] + b"\x80" + HEADER[5:] + b"\x05\0\0\0",
        b"\x27\xb5\x2f\xfd" + HEADER[4:],
    ],
    ids=[
        "nothing",
        "skippable frame",
        "dictionary",
        "checksum",
        "reserved bit",
        "single segment",
        "content size",
        "older format",
    ],
)
def test_frame_header_of_another_kind_is_refused(start: bytes) -> None:
    refused(start + RAW, 5, "begins no frame")


@pytest.mark.parametrize("length", range(len(HEADER)))
def test_frame_header_that_is_cut_is_refused(length: int) -> None:
    refused(HEADER[:length], 5, "begins no frame")


def test_window_is_allowed_up_to_what_was_announced() -> None:
    decoder = HistoryDecoder(WINDOW_LOG)
    for descriptor in (0, (WINDOW_LOG - 10) << 3, (WINDOW_LOG - 11) << 3 | 7):
        start = HEADER[:5] + bytes([descriptor])
        assert decoded(decoder, start + RAW, 5, begin=True) == b"five."
    for descriptor in ((WINDOW_LOG - 10) << 3 | 1, (WINDOW_LOG - 9) << 3, 0xFF):
        refused(HEADER[:5] + bytes([descriptor]) + RAW, 5, "wants a window")


@pytest.mark.parametrize("blocks", [b"", block(0, 0, b""), RAW])
def test_payload_of_nothing_is_refused(blocks: bytes) -> None:
    refused(HEADER + blocks, 0, "nothing is coded")


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (RAW[:-1], "ends 1 bytes behind"),
        (RAW[:2], "behind its payload"),
        (RAW + b"\0", "behind its payload"),
        (RAW + HEADER, "behind its payload|no type|expected"),
        (block(0, 5, b"five.", last=True), "last block"),
        (RAW + block(0, 0, b"", last=True), "last block"),
        (block(0, 5, b"five.", last=True) + HEADER + RAW, "last block"),
        (block(3, 5, b"five."), "no type"),
        (block(2, 5, b"five."), "stream"),
        (block(1, KIB_128 + 1, b"z"), "stream"),
        (b"", "behind its payload"),
        (block(0, 0, b""), "found 0"),
        (block(0, 4, b"four"), "found 4"),
        (block(0, 6, b"six..."), "found 6 or more"),
        (block(0, 0, b"") * MAX_HISTORY_BLOCKS + RAW, "4096 blocks"),
    ],
)
def test_payload_that_is_not_its_chunk_in_whole_blocks_is_refused(
    payload: bytes, reason: str, begin: bool
) -> None:
    if begin:
        refused(HEADER + payload, 5, reason)
        return
    decoder = HistoryDecoder(WINDOW_LOG)
    assert decoded(decoder, HEADER + RAW, 5, begin=True) == b"five."
    with pytest.raises(CodecError, match=reason):
        decoded(decoder, payload, 5, begin=False)


def test_as_many_blocks_as_allowed_are_taken() -> None:
    payload = HEADER + block(0, 0, b"") * (MAX_HISTORY_BLOCKS - 1) + RAW
    assert decoded(HistoryDecoder(WINDOW_LOG), payload, 5, begin=True) == b"five."


def test_bomb_takes_no_more_memory_than_a_chunk() -> None:
    bomb = HEADER + block(1, KIB_128, b"z") * MAX_HISTORY_BLOCKS  # 512 MiB
    out = memoryview(bytearray(CHUNK_SIZE))
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="expected 1048576 bytes, found 1179648 or more"):
            HistoryDecoder(WINDOW_LOG).decode_into(bomb, out, begin=True)
        assert tracemalloc.get_traced_memory()[1] < CHUNK_SIZE
    finally:
        tracemalloc.stop()


def test_refused_payloads_leave_no_memory_behind() -> None:
    decoder = HistoryDecoder(WINDOW_LOG)
    out = memoryview(bytearray(4))
    bad = [HEADER + RAW, HEADER + block(2, 5, b"five."), HEADER + block(0, 3, b"3.."), HEADER]
    before = address_space()
    for _ in range(2000):
        for payload in bad:
            with pytest.raises(CodecError):
                decoder.decode_into(payload, out, begin=True)
    assert address_space() - before < 32 << 20


def address_space() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmSize:")[2].split()[0]) << 10


def test_bomb_for_a_small_chunk_writes_nothing_behind_it() -> None:
    room = bytearray(b"\xaa" * CHUNK_SIZE)
    with pytest.raises(CodecError, match="or more"):
        HistoryDecoder(WINDOW_LOG).decode_into(
            HEADER + block(1, KIB_128, b"z"), memoryview(room)[:512], begin=True
        )
    assert room[512:] == b"\xaa" * (CHUNK_SIZE - 512)


def test_decoder_takes_its_window_and_little_more() -> None:
    before = resident()
    decoder = HistoryDecoder(25)
    for _ in range(3):  # the window is taken once, whoever begins anew
        encoder = HistoryEncoder(-5, 25)
        decoded(decoder, encoder.encode(NOISE), CHUNK_SIZE, begin=True)
        for _ in range(40):
            decoded(decoder, encoder.encode(NOISE[:-512]), CHUNK_SIZE - 512, begin=False)
        del encoder
    assert resident() - before < 48 << 20
    del decoder


def resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def test_all_payloads_together_are_one_frame_but_for_its_end() -> None:
    encoder = HistoryEncoder(3, WINDOW_LOG)
    frame = encoder.encode(TEXT) + encoder.encode(NOISE) + block(0, 0, b"", last=True)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frame) == TEXT + NOISE
