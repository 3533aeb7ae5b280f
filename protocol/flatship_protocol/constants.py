"""Constants of SPEC.md first, limits of this implementation after them."""

from typing import Final

PROTOCOL_VERSION: Final = 1
MAGIC: Final = b"FLTS"

SECTOR_SIZE: Final = 512  # bytes
PAGE_SIZE: Final = 4096  # bytes; granularity of segments inside a chunk
CHUNK_SIZE: Final = 1 << 20  # bytes; unit of digest and of transfer
SEGMENT_CHUNKS: Final = 1024  # chunks folded into one segment digest (1 GiB)
DIGEST_SIZE: Final = 32  # bytes, BLAKE3-256

KEY_SIZE: Final = 32  # bytes
TAG_SIZE: Final = 16  # bytes, AES-GCM
PREFACE_SIZE: Final = 8  # bytes
RECORD_HEADER_SIZE: Final = 8  # bytes
MESSAGE_HEADER_SIZE: Final = 24  # bytes
REKEY_INTERVAL: Final = 8192  # records
MAX_CIPHERTEXT: Final = CHUNK_SIZE + 16 * 1024  # bytes, tag included
MIN_CIPHERTEXT: Final = MESSAGE_HEADER_SIZE + TAG_SIZE  # bytes
MAX_PADDING: Final = 4095  # bytes

MAX_DISK_SIZE: Final = 62 << 40  # bytes
MAX_NAME_LENGTH: Final = 80  # characters, all of them ASCII
NO_DISK: Final = 0xFFFF  # disk handle of messages that concern no disk
MAX_SEGMENTS: Final = 256  # entries in one chunk's segment table
MAX_REFERENCES: Final = 1024  # images that one connection may have bound for copies
MAX_RANGES: Final = 1024  # ranges in one STORED
MAX_HELD: Final = 512  # digests in one HELD
MAX_ZSTD_WINDOW: Final = 1 << 23  # bytes; a frame holds no more than a chunk
MIN_HISTORY_WINDOW_LOG: Final = 10  # base-2 logarithm of bytes; zstd has none smaller
MAX_HISTORY_WINDOW_LOG: Final = 27
MAX_HISTORY_BLOCKS: Final = 4096  # zstd blocks in one payload of a stream with history
MAX_PROBE_FILLER: Final = 1 << 16  # bytes of zeros in one PROBE
MAX_PROBE_BYTES: Final = 512 << 20  # bytes of PROBE records in a session
MAX_PROBE_SECONDS: Final = 30  # from the first PROBE of a session to its last

CONNECTION_MAX_AGE: Final = 3600  # seconds before the sender replaces a connection
CONNECTION_MAX_BYTES: Final = 256 << 30  # bytes sealed before the sender replaces a connection
