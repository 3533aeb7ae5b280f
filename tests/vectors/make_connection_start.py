"""Print connection_start.json: one connection, from its first byte to a small disk's end.

Messages are put together here by hand from SPEC.md's tables, not by
flatship_protocol.messages, so that they check it.
"""

import json
import struct

from flatship_protocol import digest, handshake, records

SENDER_STATIC = bytes(range(0x20))
SENDER_EPHEMERAL = bytes(range(0x20, 0x40))
RECEIVER_STATIC = bytes(range(0x40, 0x60))
RECEIVER_EPHEMERAL = bytes(range(0x60, 0x80))
INVITATION_ID = bytes(range(0x80, 0x90))
INVITATION_SECRET = bytes(range(0xA0, 0xC0))

SESSION_ID = bytes(range(0xC0, 0xD0))
EPOCH = 1
CREDIT = 64 << 20  # bytes
CONNECTIONS = 16
IDLE_TIMEOUT = 30  # seconds
SOFTWARE = b"flatship 0.1.0"

# A disk of one chunk of zeros, then a page of zeros and half a kibibyte of "F".
DISK = 0
PASS = 1
CHUNK_SIZE = 1 << 20  # bytes
PAGE_SIZE = 4096  # bytes
LITERAL = b"F" * 512
TAIL = bytes(PAGE_SIZE) + LITERAL
SIZE = CHUNK_SIZE + len(TAIL)
SOURCE_ID = bytes(range(0xE0, 0x100))
IMAGE_UUID = bytes.fromhex("6000c290") + bytes(range(0xD0, 0xDC))
FREE = 1 << 40  # bytes
# RFC 8878: magic; single segment, content size in two bytes that count from 256; last block, RLE.
ZSTD_FRAME = bytes.fromhex("28b52ffd 60 0001 031000 46")


def message(kind: int, body: bytes) -> bytes:
    """Header, SPEC.md "Messages": no flags, no disk, no pass, no padding."""
    return struct.pack(">BBHIQII", kind, 0, 0xFFFF, 0, EPOCH, len(body), 0) + body


def about_disk(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Header of a message that concerns the disk."""
    return struct.pack(">BBHIQII", kind, flags, DISK, PASS, EPOCH, len(body), 0) + body


def string8(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def hello() -> bytes:
    index, capabilities = 0, 0
    fixed = SESSION_ID + struct.pack(">H6xQ", index, capabilities)
    return message(0x01, fixed + string8(SOFTWARE))


def hello_ok() -> bytes:
    capabilities = 0
    fixed = struct.pack(">QQHHI", capabilities, CREDIT, CONNECTIONS, 0, IDLE_TIMEOUT)
    return message(0x02, fixed + string8(SOFTWARE))


def open_disk() -> bytes:
    reserve, vmfs, thin, lsilogic, hardware_version = len(TAIL), 0, 0, 0, 13
    fixed = struct.pack(">QQ", SIZE, reserve) + SOURCE_ID
    fixed += struct.pack(">BBBB4x", vmfs, thin, lsilogic, hardware_version)
    return about_disk(0x03, fixed + string8(b"") + string8(b"web01") + string8(b"root"))


def disk_opened() -> bytes:
    return about_disk(0x04, IMAGE_UUID + struct.pack(">QQ", 2 * CHUNK_SIZE, FREE))


def zero() -> bytes:
    hole = 1
    return about_disk(0x07, struct.pack(">QQ", 0, CHUNK_SIZE), hole)


def chunk() -> bytes:
    zstd, segments = 1, ((1, 1), (0, 1))  # kind, pages: a page of zeros, then a short literal one
    front = struct.pack(">QIII", CHUNK_SIZE, len(TAIL), len(ZSTD_FRAME), len(LITERAL))
    front += struct.pack(">BBH", zstd, 0, len(segments)) + digest.chunk_digest(TAIL)
    table = b"".join(struct.pack(">BBHIQ", kind, 0, pages, 0, 0) for kind, pages in segments)
    return about_disk(0x05, front + ZSTD_FRAME + table)


def stored() -> bytes:
    return about_disk(0x06, struct.pack(">H6xQQ", 1, 0, SIZE))


def root() -> bytes:
    chunk_digests = digest.chunk_digest(bytes(CHUNK_SIZE)) + digest.chunk_digest(TAIL)
    return digest.root_digest(SIZE, digest.segment_digest(chunk_digests))


def end_pass() -> bytes:
    return about_disk(0x09, struct.pack(">Q", 1) + root())


def disk_proven() -> bytes:
    published, reread = 1, CHUNK_SIZE
    return about_disk(0x0C, struct.pack(">Q", reread) + root(), published)


def goodbye() -> bytes:
    last = 1
    return struct.pack(">BBHIQII", 0x0D, last, 0xFFFF, 0, EPOCH, 0, 0)


FROM_SENDER = (hello, open_disk, zero, chunk, end_pass, goodbye)
TO_SENDER = (hello_ok, disk_opened, stored, disk_proven)


def connection_start() -> dict[str, str]:
    """Every value of the example by name, in hexadecimal."""
    receiver_public = handshake.public_key(RECEIVER_STATIC)
    psk = handshake.pair_psk(INVITATION_SECRET)
    sender = handshake.Initiator(
        SENDER_STATIC, receiver_public, psk, SENDER_EPHEMERAL, INVITATION_ID
    )
    receiver = handshake.Responder(RECEIVER_STATIC, RECEIVER_EPHEMERAL)
    initiation = sender.initiation()
    receiver.read_initiation(initiation)
    response, _ = receiver.respond(psk)
    keys = sender.read_response(response)
    values = {
        "sender_static_private": SENDER_STATIC,
        "sender_static_public": handshake.public_key(SENDER_STATIC),
        "sender_ephemeral_private": SENDER_EPHEMERAL,
        "receiver_static_private": RECEIVER_STATIC,
        "receiver_static_public": receiver_public,
        "receiver_ephemeral_private": RECEIVER_EPHEMERAL,
        "invitation_id": INVITATION_ID,
        "invitation_secret": INVITATION_SECRET,
        "pair_psk": psk,
        "standing_psk": handshake.standing_psk(INVITATION_SECRET),
        "initiation": initiation,
        "response": response,
        "version_notice": handshake.version_notice(),
        "h": keys.handshake_hash,
        "k1": keys.send,
        "k2": keys.receive,
    }
    for key, makers in ((keys.send, FROM_SENDER), (keys.receive, TO_SENDER)):
        sealer = records.Sealer(key, keys.handshake_hash)
        for make in makers:  # record numbers count from 0, in this order
            values[make.__name__] = make()
            values[make.__name__ + "_record"] = sealer.seal(make())
    return {name: value.hex() for name, value in values.items()}


if __name__ == "__main__":
    print(json.dumps(connection_start(), indent=2))
