"""Bounded zstd coding of chunks. See SPEC.md, "CHUNK" and "Streams with history".

``frames`` codes each chunk by itself, ``history`` the chunks of a connection as one stream.
"""

from flatship_protocol.codec.frames import Compressor, Decompressor
from flatship_protocol.codec.history import HistoryDecoder, HistoryEncoder

__all__ = ["Compressor", "Decompressor", "HistoryDecoder", "HistoryEncoder"]
