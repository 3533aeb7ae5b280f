"""A chunk to a zstd frame of its own, and back. See SPEC.md, "CHUNK"."""

from typing import Final

import zstandard

from flatship_protocol.constants import MAX_ZSTD_WINDOW
from flatship_protocol.errors import CodecError

_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1; skippable and legacy frames differ


class Compressor:
    """Compresses chunks, each to a frame of its own; keeps one context a level.

    Not thread-safe: a worker thread has its own.
    """

    def __init__(self) -> None:
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}

    def compress(self, data: memoryview | bytes, level: int) -> bytes:
        """Compress ``data`` to one frame with its content size, without checksum.

        Args:
            data: Contiguous, format "B", not empty.
            level: A level of zstd, negative ones for speed.

        Releases the GIL.
        """
        context = self._contexts.get(level)
        if context is None:
            context = zstandard.ZstdCompressor(
                level=level, write_content_size=True, write_checksum=False, write_dict_id=False
            )
            self._contexts[level] = context
        return context.compress(data)


class Decompressor:
    """Decompresses frames that a peer made, and trusts nothing they say.

    Not thread-safe: a worker thread has its own.
    """

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)

    def decompress_into(self, payload: memoryview, out: memoryview) -> None:
        """Fill ``out`` with what ``payload`` decompresses to.

        Args:
            payload: Exactly one frame; contiguous, format "B".
            out: Writable, contiguous, format "B"; its length is the length
                that the peer promised, at least one byte.

        Raises:
            CodecError: The payload is not one whole frame of exactly that
                length. ``out`` is as it was.

        Takes memory of about the size of ``out`` while it runs, whatever the
        payload says: zstd keeps no more of a window than the content is long.
        Releases the GIL.
        """
        if not out:
            # The library returns nothing for such a frame without a look at the rest.
            raise CodecError(f"zstd payload of {len(payload)} bytes where nothing is coded")
        _check_frame_header(payload, len(out))
        try:
            # The library allocates what the header says and ignores
            # max_output_size, which is why the header was compared with
            # ``out`` first.
            content = self._context.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd frame of {len(payload)} bytes: {error}") from error
        if len(content) != len(out):
            raise CodecError(f"zstd frame: expected {len(out)} bytes, found {len(content)}")
        out[:] = content


def _check_frame_header(payload: memoryview, length: int) -> None:
    if bytes(payload[:4]) != _FRAME_MAGIC:
        raise CodecError(f"payload of {len(payload)} bytes does not start with a zstd frame")
    try:
        header = zstandard.get_frame_parameters(payload)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd frame header: {error}") from error
    if header.content_size != length:
        raise CodecError(f"zstd frame: expected {length} bytes, promises {header.content_size}")
    if header.dict_id != 0:
        raise CodecError(f"zstd frame wants dictionary {header.dict_id}; there is none")
    if header.window_size > MAX_ZSTD_WINDOW:
        raise CodecError(
            f"zstd frame wants a window of {header.window_size} bytes; at most {MAX_ZSTD_WINDOW}"
        )
