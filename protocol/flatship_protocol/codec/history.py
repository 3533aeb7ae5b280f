"""One zstd frame over many chunks: each is coded with those before it at hand.

A payload is the next blocks of the frame, whole and none of them the last: so a
decoder can be given exactly what belongs to one chunk, and never waits for more.
The frame is never ended; another begins where history is to be forgotten.
"""

from typing import IO, Final, cast

import zstandard

from flatship_protocol.constants import (
    CHUNK_SIZE,
    MAX_HISTORY_BLOCKS,
    MAX_HISTORY_WINDOW_LOG,
    MIN_HISTORY_WINDOW_LOG,
)
from flatship_protocol.errors import CodecError

_FRAME_START: Final = b"\x28\xb5\x2f\xfd\x00"  # magic; no content size, checksum or dictionary
_FRAME_HEADER_SIZE: Final = len(_FRAME_START) + 1  # bytes; the last one is for the window
_BLOCK_HEADER_SIZE: Final = 3  # bytes
_MAX_BLOCK: Final = 128 << 10  # bytes, decoded; with room for it the library keeps none of it back
# Base-2 logarithms of entries of 4 bytes. zstd's own tables for levels from 10 on would take up to
# 90 MiB beside a window of 32; with these it is 24, and the payloads are 1 % larger.
_MAX_CHAIN_LOG: Final = 20
_MAX_HASH_LOG: Final = 21
_REPEATED, _RESERVED = 1, 3  # types of blocks, RFC 8878, 3.1.1.2


class HistoryEncoder:
    """Codes chunks as one stream, for one connection.

    Args:
        level: A level of zstd; it stays for the life of the encoder.
        window_log: Base-2 logarithm of the window in bytes, as HELLO_OK allows: 10 to 27.

    Takes memory of about the window and zstd's tables for the level. Not
    thread-safe: chunks are coded one after the other, in the order in which they are sent.
    """

    def __init__(self, level: int, window_log: int) -> None:
        _check_window_log(window_log)
        usual = zstandard.ZstdCompressionParameters.from_level(level, window_log=window_log)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level,
            window_log=window_log,
            chain_log=min(usual.chain_log, _MAX_CHAIN_LOG),
            hash_log=min(usual.hash_log, _MAX_HASH_LOG),
            enable_ldm=True,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        self._context = zstandard.ZstdCompressor(compression_params=parameters)
        self.restart()

    def restart(self) -> None:
        """Forget all history: the next chunk begins a frame.

        Due when a payload was made and is not sent: the decoder would miss it.
        """
        self._stream = self._context.compressobj()
        self.begins = True
        """Whether the next payload begins a frame, as CHUNK is to say."""

    def encode(self, data: memoryview | bytes) -> bytes:
        """The payload for ``data``; the history of the next one from here on.

        Args:
            data: The literals of one chunk: contiguous, format "B", 1 byte to 1 MiB.

        Returns:
            At most 4 KiB more than ``data``; with a window of 128 KiB or more, some dozen bytes.

        Raises:
            ValueError: There is nothing to code, or more than a chunk; nothing was coded.

        Releases the GIL.
        """
        if not 0 < len(data) <= CHUNK_SIZE:
            raise ValueError(f"{len(data)} bytes to code; expected 1 to {CHUNK_SIZE}")
        self.begins = False
        coded = self._stream.compress(data)
        return coded + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


class HistoryDecoder:
    """Decodes the stream of one connection, and trusts nothing that its peer says.

    Args:
        window_log: Base-2 logarithm of the largest window that was announced: 10 to 27.

    Takes memory of about that window from the first frame on that asks for it, and
    of the payload and some blocks of 128 KiB while it decodes. Not thread-safe.
    """

    def __init__(self, window_log: int) -> None:
        _check_window_log(window_log)
        self._window_size = 1 << window_log
        self._context = zstandard.ZstdDecompressor(max_window_size=self._window_size)
        self._sink = _Sink()
        self._stream: zstandard.ZstdDecompressionWriter | None = None

    def decode_into(self, payload: memoryview | bytes, out: memoryview, *, begin: bool) -> None:
        """Fill ``out`` with what ``payload`` decodes to.

        Args:
            payload: The next blocks of the stream; contiguous, format "B". It may lie in ``out``.
            out: Writable, contiguous, format "B"; its length is the length
                that the peer promised, 1 byte to 1 MiB.
            begin: The payload begins a frame, with its header.

        Raises:
            CodecError: The payload is not whole blocks of exactly that length, or no
                stream has begun, or its frame may not be. ``out`` is undefined, and the
                stream is lost: only a payload with ``begin`` can follow.

        Releases the GIL.
        """
        coded = bytes(payload)
        stream, self._stream = self._stream, None
        if not out:
            raise CodecError(f"stream, {len(coded)} bytes of it where nothing is coded")
        if begin:
            self._check_frame_header(coded)
            stream = self._context.stream_writer(
                cast("IO[bytes]", self._sink), write_size=_MAX_BLOCK, closefd=False
            )
        elif stream is None:
            raise CodecError("a payload goes on with a stream that has not begun")
        ends = _block_ends(coded, _FRAME_HEADER_SIZE if begin else 0)
        self._sink.aim(out)
        try:
            self._write(stream, coded, ends, len(out))
        except zstandard.ZstdError as error:
            raise CodecError(f"stream, {len(coded)} bytes of it: {error}") from error
        finally:
            self._sink.leave()
        if self._sink.came != len(out):
            raise CodecError(f"stream: expected {len(out)} bytes, found {self._sink.came}")
        self._stream = stream

    def _write(
        self,
        stream: zstandard.ZstdDecompressionWriter,
        coded: bytes,
        ends: list[int],
        promised: int,
    ) -> None:
        """Decode block by block, so that a bomb is found after the first one that is too much."""
        position = 0
        for end in ends:
            stream.write(memoryview(coded)[position:end])
            position = end
            if self._sink.came > promised:
                raise CodecError(
                    f"stream: expected {promised} bytes, found {self._sink.came} or more"
                )

    def _check_frame_header(self, coded: bytes) -> None:
        if len(coded) < _FRAME_HEADER_SIZE or not coded.startswith(_FRAME_START):
            raise CodecError(f"payload of {len(coded)} bytes begins no frame of a stream")
        exponent, mantissa = divmod(coded[len(_FRAME_START)], 8)
        base = 1 << (10 + exponent)
        window = base + base // 8 * mantissa
        if window > self._window_size:
            raise CodecError(
                f"stream wants a window of {window} bytes; at most {self._window_size}"
            )


class _Sink:
    """Takes what the library decodes, up to what was promised, and counts all of it.

    It does not raise: the library (0.25.0) would lose its buffer, 128 KiB each time.
    """

    def __init__(self) -> None:
        self._out = memoryview(b"")
        self.came = 0
        """Bytes since ``aim``, whether or not there was room for them."""

    def aim(self, out: memoryview) -> None:
        """Have the next bytes put into ``out``."""
        self._out, self.came = out, 0

    def leave(self) -> None:
        """Let go of the buffer."""
        self._out = memoryview(b"")

    def write(self, data: bytes) -> int:
        """Take what was decoded."""
        room = self._out[self.came : self.came + len(data)]
        room[:] = data[: len(room)]
        self.came += len(data)
        return len(data)


def _block_ends(coded: bytes, position: int) -> list[int]:
    """Where each block ends, from ``position`` on; all are whole, and the frame goes on.

    Raises:
        CodecError: There is none, one is cut or the frame's last, or there are too many.
    """
    ends: list[int] = []
    while position < len(coded) or not ends:
        header = int.from_bytes(coded[position : position + _BLOCK_HEADER_SIZE], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if last or kind == _RESERVED:
            raise CodecError("stream: its last block, or a block of no type")
        position += _BLOCK_HEADER_SIZE + (1 if kind == _REPEATED else size)
        ends.append(position)
        if len(ends) > MAX_HISTORY_BLOCKS:
            raise CodecError(f"stream: more than {MAX_HISTORY_BLOCKS} blocks for one chunk")
    if position != len(coded):
        raise CodecError(f"stream: a block ends {position - len(coded)} bytes behind its payload")
    return ends


def _check_window_log(window_log: int) -> None:
    if not MIN_HISTORY_WINDOW_LOG <= window_log <= MAX_HISTORY_WINDOW_LOG:
        raise ValueError(
            f"a window of 2^{window_log} bytes;"
            f" expected 2^{MIN_HISTORY_WINDOW_LOG} to 2^{MAX_HISTORY_WINDOW_LOG}"
        )
