import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.codec import Compressor, Decompressor
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import CodecError

TEXT = b"sixteen bytes...." * 1000
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"skip!"


def frame(data: bytes, level: int = 1) -> bytes:
    return Compressor().compress(data, level)


def decompress(payload: bytes, length: int) -> bytes:
    out = bytearray(length)
    Decompressor().decompress_into(memoryview(payload), memoryview(out))
    return bytes(out)


def window_frame(window_log: int) -> bytes:
    """An empty raw block under a header that asks for a window of 2^window_log bytes."""
    descriptor = 0b1000_0000  # content size in 4 bytes, no single segment, no checksum
    window = (window_log - 10) << 3
    last_raw_block = (1 | 8 << 3).to_bytes(3, "little") + b"8 bytes."
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor, window]) + b"\x08\0\0\0" + last_raw_block


@settings(derandomize=True)
@given(st.binary(min_size=1, max_size=4096), st.sampled_from([-5, -1, 1, 3, 9]))
def test_what_was_compressed_decompresses(data: bytes, level: int) -> None:
    assert decompress(frame(data, level), len(data)) == data


def test_frame_carries_its_content_size_and_neither_checksum_nor_dictionary() -> None:
    header = zstandard.get_frame_parameters(frame(TEXT))
    assert header.content_size == len(TEXT)
    assert not header.has_checksum
    assert header.dict_id == 0


def test_one_compressor_serves_several_levels_in_turn() -> None:
    compressor = Compressor()
    for level in (1, 9, -3, 1):
        payload = compressor.compress(memoryview(TEXT), level)
        assert payload == frame(TEXT, level)


def test_one_decompressor_goes_on_after_a_refusal() -> None:
    decompressor = Decompressor()
    out = bytearray(len(TEXT))
    with pytest.raises(CodecError):
        decompressor.decompress_into(memoryview(frame(TEXT)[:-1]), memoryview(out))
    decompressor.decompress_into(memoryview(frame(TEXT)), memoryview(out))
    assert out == TEXT


@pytest.mark.parametrize("promised", [1, len(TEXT) - 1, len(TEXT) + 1, CHUNK_SIZE])
def test_frame_of_another_length_is_refused_before_decompression(promised: int) -> None:
    with pytest.raises(CodecError, match="promises"):
        decompress(frame(TEXT), promised)


@pytest.mark.parametrize("trailing", [b"", b"and more"])
def test_frame_of_nothing_is_refused(trailing: bytes) -> None:
    with pytest.raises(CodecError, match="nothing is coded"):
        decompress(frame(b"") + trailing, 0)


def test_library_that_returns_another_length_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ShortDecompressor:
        def __init__(self, **options: object) -> None: ...

        def decompress(self, payload: memoryview, **options: object) -> bytes:
            return TEXT[:-1]

    monkeypatch.setattr(zstandard, "ZstdDecompressor", ShortDecompressor)
    with pytest.raises(CodecError, match="found 16999"):
        decompress(frame(TEXT), len(TEXT))


def test_frame_without_content_size_is_refused() -> None:
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    with pytest.raises(CodecError, match="promises"):
        decompress(payload, len(TEXT))


def test_header_that_promises_less_than_the_frame_holds_is_refused() -> None:
    payload = bytearray(frame(bytes(1000)))
    assert payload[4] & 0xE0 == 0x60  # content size in two bytes, which count from 256
    payload[5:7] = (500 - 256).to_bytes(2, "little")
    with pytest.raises(CodecError):
        decompress(bytes(payload), 500)


def test_header_that_promises_more_than_the_frame_holds_is_refused() -> None:
    payload = bytearray(frame(bytes(1000)))
    payload[5:7] = (2000 - 256).to_bytes(2, "little")
    with pytest.raises(CodecError):
        decompress(bytes(payload), 2000)


def test_refused_payload_leaves_the_output_as_it_was() -> None:
    payload = bytearray(frame(random.Random(1).randbytes(4096) + TEXT))
    out = bytearray(b"\xaa" * (4096 + len(TEXT)))
    with pytest.raises(CodecError):
        Decompressor().decompress_into(memoryview(payload)[:-1], memoryview(out))
    assert out == b"\xaa" * len(out)


def test_bomb_takes_no_more_memory_than_the_output() -> None:
    bomb = frame(bytes(256 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="promises 268435456"):
            decompress(bomb, CHUNK_SIZE)
        assert tracemalloc.get_traced_memory()[1] < 2 * CHUNK_SIZE + 65536
    finally:
        tracemalloc.stop()


def test_bomb_that_lies_about_its_size_takes_no_more_memory_than_the_output() -> None:
    bomb = bytearray(frame(bytes(256 << 20)))
    assert bomb[4] >> 6 == 2  # content size in four bytes
    start = 5 if bomb[4] & 0x20 else 6
    bomb[start : start + 4] = CHUNK_SIZE.to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decompress(bytes(bomb), CHUNK_SIZE)
        assert tracemalloc.get_traced_memory()[1] < 3 * CHUNK_SIZE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "trailing",
    [b"\0", frame(TEXT), frame(b"x"), SKIPPABLE],
    ids=["byte", "second frame", "small second frame", "skippable frame"],
)
def test_anything_after_the_frame_is_refused(trailing: bytes) -> None:
    with pytest.raises(CodecError, match="unused data"):
        decompress(frame(TEXT) + trailing, len(TEXT))


@pytest.mark.parametrize("length", [5, len(TEXT)])
def test_skippable_frame_is_refused_alone_and_in_front(length: int) -> None:
    for payload in (SKIPPABLE, SKIPPABLE + frame(TEXT)):
        with pytest.raises(CodecError, match="does not start with a zstd frame"):
            decompress(payload, length)


def test_frame_cut_anywhere_is_refused() -> None:
    payload = frame(TEXT)
    for length in range(len(payload)):
        with pytest.raises(CodecError):
            decompress(payload[:length], len(TEXT))


def test_frame_that_wants_a_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"%d bottles of beer on the wall, %d bottles" % (n, n) for n in range(3000)
    ]
    dictionary = zstandard.train_dictionary(1024, samples)
    payload = zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0])
    with pytest.raises(CodecError, match=f"dictionary {dictionary.dict_id()}"):
        decompress(payload, len(samples[0]))


def test_window_is_allowed_up_to_the_limit_and_not_beyond() -> None:
    assert decompress(window_frame(23), 8) == b"8 bytes."
    with pytest.raises(CodecError, match="window of 16777216 bytes"):
        decompress(window_frame(24), 8)


def test_corrupt_block_is_refused() -> None:
    with pytest.raises(CodecError):
        decompress(frame(TEXT)[:9] + b"\xff" * 20, len(TEXT))
