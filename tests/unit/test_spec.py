"""SPEC.md says what the code does: tables, numbers and examples are read from the page."""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from flatship_protocol import connection as connection_layer
from flatship_protocol import constants, digest, noise
from flatship_protocol.codec import HistoryDecoder
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import ErrorCode
from flatship_protocol.handshake import Initiator, Responder, pair_psk, standing_psk, version_notice
from flatship_protocol.invitation import Invitation, decode_invitation, encode_invitation
from flatship_protocol.messages import (
    Adapter,
    Chunk,
    Codec,
    DiskFailed,
    DiskFormat,
    DiskProven,
    EndPass,
    MessageType,
    OpenDisk,
    Probe,
    Probed,
    Provisioning,
    SegmentKind,
    decode,
    encode,
)
from flatship_protocol.messages import chunk as chunk_message
from flatship_protocol.messages import connection as connection_messages
from flatship_protocol.messages import disk as disk_messages
from flatship_protocol.records import Opener, Sealer
from flatship_protocol.session import (
    RECEIVER_RECEIVES,
    SENDER_RECEIVES,
    SENDER_SENDS,
    SenderSession,
)
from flatship_receiver import admission, pipeline, session

TESTS = Path(__file__).parents[1]
SPEC = (TESTS.parent / "protocol" / "SPEC.md").read_text("utf-8")
EXAMPLE: dict[str, str] = json.loads((TESTS / "vectors" / "connection_start.json").read_text())
FACTS = {name: bytes.fromhex(text) for name, text in EXAMPLE.items()}

Table = list[list[str]]


def section(title: str, text: str = SPEC) -> str:
    """What stands below a heading, up to the next heading of its level or above."""
    start = re.search(rf"^(#+) {re.escape(title)}.*$", text, re.MULTILINE)
    assert start is not None, f"SPEC.md has no section {title}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def tables(text: str) -> list[Table]:
    """The Markdown tables in ``text``, with their heads, without their rules."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines()][:1]
        + [
            [cell.strip() for cell in line.strip("|").split(" |")]
            for line in table.splitlines()[2:]
        ]
        for table in found
    ]


def facts(text: str) -> dict[str, str]:
    """The rows of all tables in ``text`` that have two columns."""
    return {row[0]: row[1].strip("`") for table in tables(text) for row in table if len(row) == 2}


# Disk states


@pytest.mark.parametrize(
    ("title", "transitions"),
    [
        ("What a sender sends", SENDER_SENDS),
        ("What a sender receives", SENDER_RECEIVES),
        ("What a receiver receives", RECEIVER_RECEIVES),
    ],
)
def test_transition_table_is_the_codes(
    title: str, transitions: Mapping[Any, Mapping[Any, Any]]
) -> None:
    ((names, *rows),) = tables(section(title))
    written = {
        row[0]: {name: cell for name, cell in zip(names[1:], row[1:], strict=True) if cell != "–"}
        for row in rows
    }
    assert written == {
        state.value: {message.TYPE.name: after.value for message, after in row.items()}
        for state, row in transitions.items()
    }


# Messages


def test_every_message_has_a_section_with_its_number() -> None:
    written = re.findall(r"([A-Z_]+) \((0x[0-9A-F]{2})\)", "\n".join(headings()))
    assert sorted((name, int(number, 16)) for name, number in written) == sorted(
        (kind.name, kind.value) for kind in MessageType
    )


def headings() -> list[str]:
    return re.findall(r"^### .*$", SPEC, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("HELLO (", connection_messages._HELLO),
        ("HELLO_OK (", connection_messages._HELLO_OK),
        ("OPEN_DISK (", disk_messages._OPEN_DISK),
        ("DISK_OPENED (", disk_messages._DISK_OPENED),
        ("CHUNK (", chunk_message._FIXED),
        ("STORED (", disk_messages._RANGES),
        ("ZERO (", disk_messages._ZERO),
        ("END_PASS (", disk_messages._END_PASS),
        ("PROVING (", disk_messages._PROVING),
        ("ABANDON (", disk_messages._ABANDON),
        ("DISK_PROVEN (", disk_messages._DISK_PROVEN),
        ("DISK_FAILED (", disk_messages._DISK_FAILED),
        ("DISK_FAILED (", connection_messages._ERROR),
        ("IMAGE (", connection_messages._IMAGE),
        ("PROBE (", connection_messages._PROBE),
        ("PROBED (", connection_messages._PROBED),
        ("CREDIT (", connection_messages._CREDIT),
        ("PING (", connection_messages._TOKEN),
    ],
)
def test_offset_table_has_the_codes_fields(title: str, layout: Struct) -> None:
    (_, *rows) = tables(section(title))[0]
    fixed = [(int(row[0]), int(row[1])) for row in rows if row[0].isdigit() and row[1].isdigit()]
    ends = [offset + size for offset, size in fixed]
    assert [offset for offset, _ in fixed] == [0, *ends[:-1]]
    assert ends[-1] == layout.size
    written = [size for (_, size), row in zip(fixed, rows, strict=False) if row[2] != "0"]
    assert written == field_sizes(layout.format)


def field_sizes(layout: str) -> list[int]:
    """Sizes of a layout's fields; SPEC.md's zeros, pad bytes here, are left out."""
    sizes = {"Q": 8, "I": 4, "H": 2, "B": 1}
    fields = re.findall(r"(\d*)([A-Za-z])", layout)
    return [
        size
        for count, kind in fields
        if kind != "x"
        for size in ([int(count)] if kind == "s" else [sizes[kind]] * int(count or 1))
    ]


@pytest.mark.parametrize(
    ("field", "registry", "names"),
    [
        ("format", DiskFormat, ["vmfs", "monolithicFlat", "twoGbMaxExtentFlat"]),
        ("provisioning", Provisioning, ["thin", "thick", "eager"]),
        ("adapter", Adapter, ["lsilogic", "buslogic", "ide"]),
        ("codec", Codec, ["raw", "zstd", "history"]),
        ("kind", SegmentKind, ["literal", "zero", "keep", "copy"]),
    ],
)
def test_registry_has_the_codes_numbers(field: str, registry: Any, names: list[str]) -> None:
    (cell,) = re.findall(rf"^\|.*\| {field}: (.*) \|$", SPEC, re.MULTILINE)
    written = re.findall(r"(\d) ([A-Za-z]+)", cell)
    assert [name for _, name in written] == names
    assert [int(number) for number, _ in written] == [int(member) for member in registry]
    assert [name.lower() for name in names] == [
        member.name.lower().replace("_", "") for member in registry
    ]


# Error codes and limits


def test_error_table_has_the_codes_numbers_and_names() -> None:
    ((_, *rows),) = tables(section("Error codes"))
    assert {int(row[0]): row[1] for row in rows} == {code.value: code.name for code in ErrorCode}
    for row in rows:
        assert len(row) == 6
        assert set(row[2].split()) <= {"E", "F", "A"}


def test_unknown_error_code_means_internal() -> None:
    body = disk_messages._DISK_FAILED.pack(999, 1, 2)
    header = FACTS["stored"][:16] + len(body).to_bytes(4, "big") + bytes(4)
    message = decode(memoryview(bytes([MessageType.DISK_FAILED]) + header[1:] + body))[1]
    assert isinstance(message, DiskFailed)
    assert message.code is ErrorCode.INTERNAL


def test_limits_are_the_codes() -> None:
    limits: dict[str, float] = {
        "sector": constants.SECTOR_SIZE,
        "page": constants.PAGE_SIZE,
        "chunk": constants.CHUNK_SIZE,
        "chunks in a digest segment": constants.SEGMENT_CHUNKS,
        "digest, key, psk, handshake hash": constants.KEY_SIZE,
        "preface": constants.PREFACE_SIZE,
        "record header": constants.RECORD_HEADER_SIZE,
        "message header": constants.MESSAGE_HEADER_SIZE,
        "AES-GCM tag, mac1": constants.TAG_SIZE,
        "smallest ciphertext": constants.MIN_CIPHERTEXT,
        "largest ciphertext from the sender": constants.MAX_CIPHERTEXT,
        "largest ciphertext to the sender": connection_layer.MAX_CIPHERTEXT_TO_SENDER,
        "records between rekeys": constants.REKEY_INTERVAL,
        "padding": constants.MAX_PADDING,
        "disk": constants.MAX_DISK_SIZE,
        "name": constants.MAX_NAME_LENGTH,
        "software": connection_messages.MAX_SOFTWARE,
        "segments of a chunk": constants.MAX_SEGMENTS,
        "ranges in STORED or WANT": constants.MAX_RANGES,
        "image references of a connection": constants.MAX_REFERENCES,
        "digests in HELD": constants.MAX_HELD,
        "zstd window": constants.MAX_ZSTD_WINDOW,
        "history window, smallest": 1 << constants.MIN_HISTORY_WINDOW_LOG,
        "history window, largest": 1 << constants.MAX_HISTORY_WINDOW_LOG,
        "blocks in a payload with history": constants.MAX_HISTORY_BLOCKS,
        "age at which a connection is replaced": constants.CONNECTION_MAX_AGE,
        "bytes after which a connection is replaced": constants.CONNECTION_MAX_BYTES,
        "filler of a PROBE": constants.MAX_PROBE_FILLER,
        "PROBEs of a session": constants.MAX_PROBE_BYTES,
        "a session's time for PROBEs": constants.MAX_PROBE_SECONDS,
        "connections of a session": admission.CONNECTIONS_PER_SESSION,
        "sessions of a sender": admission.SESSIONS_PER_PEER,
        "disks of a session": session.MAX_DISKS,
        "open digest segments of a disk": pipeline.MAX_OPEN_SEGMENTS,
        "handshake": connection_layer.HANDSHAKE_TIMEOUT,
        "idle": connection_layer.IDLE_TIMEOUT,
        "keepalive": connection_layer.KEEPALIVE_INTERVAL,
        "progress": connection_layer.MIN_PROGRESS,
        "window of progress": connection_layer.PROGRESS_WINDOW,
        "session without progress": connection_layer.STALL_TIMEOUT,
        "virtual hardware, lowest": disk_messages.MIN_HARDWARE_VERSION,
        "virtual hardware, highest": disk_messages.MAX_HARDWARE_VERSION,
    }
    written = facts(section("Limits"))
    assert written.pop("limit") == "value"
    assert {name: int(text.split()[0].replace(",", "")) for name, text in written.items()} == limits


# Probes


def test_probe_values_are_what_the_code_makes() -> None:
    written = facts(section("PROBED"))
    probe, probed = Probe(4, report=True), Probed(60, 1_500_000)
    assert bytes.fromhex(written["PROBE"]) == encode(probe, 1)
    assert bytes.fromhex(written["PROBED"]) == encode(probed, 1)
    assert probe.record_size == 60


# Streams with history


def test_history_values_are_one_stream() -> None:
    written = facts(section("CHUNK ("))
    counted = bytes(range(256)) * 2
    chunks = {"first": counted, "second": counted + b"\x2a" * 512}
    decoder = HistoryDecoder(20)
    for name, data in chunks.items():
        begin = name == "first"
        payload = bytes.fromhex(written[f"{name} payload" + ", with *begin*" * begin])
        out = memoryview(bytearray(len(data)))
        decoder.decode_into(payload, out, begin=begin)
        assert out == data
        assert len(payload) < len(data) / 2 or begin
        digest_written = written[f"SHA-256 of the {name} chunk's literals"]
        assert sha256(data).hexdigest() == digest_written


# Digests


def test_digest_values_are_the_codes() -> None:
    disk = bytes(CHUNK_SIZE) + bytes(range(256)) * (CHUNK_SIZE // 256) + b"\xff" * CHUNK_SIZE
    chunks = [digest.chunk_digest(disk[at : at + CHUNK_SIZE]) for at in range(0, 3 << 20, 1 << 20)]
    segment = digest.segment_digest(b"".join(chunks))
    written = facts(section("Digests"))
    assert written.pop("what") == "value"
    assert written == {
        "chunk of 1 MiB of zeros": digest.zero_digest(CHUNK_SIZE).hex(),
        "second chunk of the disk": chunks[1].hex(),
        "third chunk of the disk": chunks[2].hex(),
        "its one digest segment": segment.hex(),
        "its root": digest.root_digest(len(disk), segment).hex(),
    }


# The example


def blocks() -> list[str]:
    found = re.findall(r"^```\n(.*?)^```$", section("Example"), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in found]


def test_example_keys_are_the_vectors() -> None:
    written = facts(section("Example"))
    assert written.pop("what") == "value"
    assert written.pop("prologue") == (b"flatship/1" + FACTS["initiation"][:8]).hex()
    assert written == {
        "sender's static private key": EXAMPLE["sender_static_private"],
        "sender's static public key": EXAMPLE["sender_static_public"],
        "sender's ephemeral private key": EXAMPLE["sender_ephemeral_private"],
        "receiver's static private key": EXAMPLE["receiver_static_private"],
        "receiver's static public key": EXAMPLE["receiver_static_public"],
        "receiver's ephemeral private key": EXAMPLE["receiver_ephemeral_private"],
        "invitation id": EXAMPLE["invitation_id"],
        "invitation secret": EXAMPLE["invitation_secret"],
        "psk of this handshake": EXAMPLE["pair_psk"],
        "psk of the pair afterwards": EXAMPLE["standing_psk"],
        "h": EXAMPLE["h"],
        "k1": EXAMPLE["k1"],
        "k2": EXAMPLE["k2"],
        "a version notice": EXAMPLE["version_notice"],
    }


def test_example_invitation_is_what_the_code_makes() -> None:
    line = blocks()[0]
    invitation = decode_invitation(line)
    assert invitation == Invitation(
        invitation.endpoint,
        FACTS["receiver_static_public"],
        FACTS["invitation_id"],
        FACTS["invitation_secret"],
    )
    assert encode_invitation(invitation) == line


def test_example_handshake_is_what_the_code_makes() -> None:
    initiation, response = (bytes.fromhex(block) for block in blocks()[1:3])
    psk = pair_psk(FACTS["invitation_secret"])
    assert psk == FACTS["pair_psk"]
    assert standing_psk(FACTS["invitation_secret"]) == FACTS["standing_psk"]
    sender = Initiator(
        FACTS["sender_static_private"],
        noise.public_key(FACTS["receiver_static_private"]),
        psk,
        FACTS["sender_ephemeral_private"],
        FACTS["invitation_id"],
    )
    receiver = Responder(FACTS["receiver_static_private"], FACTS["receiver_ephemeral_private"])
    assert sender.initiation() == initiation
    receiver.read_initiation(initiation)
    assert receiver.respond(psk)[0] == response
    keys = sender.read_response(response)
    assert (keys.send, keys.receive) == (FACTS["k1"], FACTS["k2"])
    assert keys.handshake_hash == FACTS["h"]
    assert version_notice() == FACTS["version_notice"]


def test_example_records_are_what_the_code_makes() -> None:
    shown = re.findall(
        r"^([A-Z_]+), (from|to) the sender, n = (\d+).*?^```\n(.*?)\n\n(.*?)^```$",
        section("Example").replace("Each message, then its record. ", ""),
        re.MULTILINE | re.DOTALL,
    )
    assert len(shown) == len([name for name in EXAMPLE if name.endswith("_record")])
    sealers = {
        "from": Sealer(FACTS["k1"], FACTS["h"]),
        "to": Sealer(FACTS["k2"], FACTS["h"]),
    }
    openers = {
        "from": Opener(FACTS["k1"], FACTS["h"]),
        "to": Opener(FACTS["k2"], FACTS["h"]),
    }
    for name, direction, number, message_text, record_text in shown:
        message, record = bytes.fromhex(message_text), bytes.fromhex(record_text)
        assert message == FACTS[name.lower()]
        epoch, decoded = decode(memoryview(message))
        assert decoded.TYPE.name == name
        assert encode(decoded, epoch) == message
        assert sealers[direction].records == int(number)
        assert sealers[direction].seal(message) == record
        out = memoryview(bytearray(len(message)))
        openers[direction].open_into(record[:8], memoryview(record)[8:], out)
        assert out == message


# Credit


def test_disk_proven_acknowledges_what_no_stored_has() -> None:
    account = SenderSession(1, credit=CHUNK_SIZE)
    opening = decode(memoryview(FACTS["open_disk"]))[1]
    chunk, end = (decode(memoryview(FACTS[name]))[1] for name in ("chunk", "end_pass"))
    opened, proven = (decode(memoryview(FACTS[name]))[1] for name in ("disk_opened", "disk_proven"))
    assert isinstance(opening, OpenDisk)
    assert isinstance(chunk, Chunk)
    assert isinstance(end, EndPass)
    assert isinstance(proven, DiskProven)
    account.open(opening)
    account.receive(1, opened)  # type: ignore[arg-type]
    account.reserve(chunk.disk, chunk.offset, chunk.length)
    account.send(chunk, 0.0)
    account.send(end, 0.0)
    acknowledged = account.receive(1, proven)
    assert acknowledged is not None
    assert acknowledged.chunk_bytes == chunk.length
    assert account.outstanding == 0
