"""The handshake of SPEC.md: prefaces, mac1, payloads, and which psk is meant.

Bytes in, bytes out; the caller moves them. Each object serves one handshake.
"""

import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flatship_protocol.constants import (
    KEY_SIZE,
    MAGIC,
    PREFACE_SIZE,
    PROTOCOL_VERSION,
    TAG_SIZE,
)
from flatship_protocol.errors import HandshakeFailed, ProtocolVersionMismatch, UsageError
from flatship_protocol.noise import HandshakeState, public_key

__all__ = [
    "INITIATION_SIZE",
    "INVITATION_ID_SIZE",
    "RESPONSE_SIZE",
    "Initiation",
    "Initiator",
    "Keys",
    "Preface",
    "PrefaceKind",
    "Responder",
    "pair_psk",
    "parse_preface",
    "public_key",
    "standing_psk",
    "version_notice",
]

INVITATION_ID_SIZE: Final = 16  # bytes
MAC1_SIZE: Final = 16  # bytes
INITIATION_PAYLOAD_SIZE: Final = 64  # bytes
RESPONSE_PAYLOAD_SIZE: Final = 16  # bytes
INITIATION_NOISE_SIZE: Final = KEY_SIZE + (KEY_SIZE + TAG_SIZE) + INITIATION_PAYLOAD_SIZE + TAG_SIZE
RESPONSE_NOISE_SIZE: Final = KEY_SIZE + RESPONSE_PAYLOAD_SIZE + TAG_SIZE
INITIATION_SIZE: Final = PREFACE_SIZE + INITIATION_NOISE_SIZE + MAC1_SIZE
RESPONSE_SIZE: Final = PREFACE_SIZE + RESPONSE_NOISE_SIZE

_PREFACE: Final = struct.Struct(">4sBBH")
_INITIATION_PAYLOAD: Final = struct.Struct(f">B{INVITATION_ID_SIZE}s47s")
_PROLOGUE: Final = b"flatship/1"
_HAS_INVITATION: Final = 0x01
_NO_INVITATION: Final = bytes(INVITATION_ID_SIZE)


class PrefaceKind(enum.IntEnum):
    """What follows a preface."""

    INITIATION = 1
    RESPONSE = 2
    VERSION_NOTICE = 3


_LENGTHS: Final = {
    PrefaceKind.INITIATION: INITIATION_SIZE - PREFACE_SIZE,
    PrefaceKind.RESPONSE: RESPONSE_SIZE - PREFACE_SIZE,
    PrefaceKind.VERSION_NOTICE: 0,
}


@dataclass(frozen=True, slots=True)
class Preface:
    """A checked preface: what follows it, and how long that is."""

    kind: PrefaceKind
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class Initiation:
    """What an initiation says: who calls, and by which invitation, if any."""

    sender_public: bytes
    invitation: bytes | None


@dataclass(frozen=True, slots=True)
class Keys:
    """What a completed handshake leaves behind; 32 bytes each.

    ``send`` and ``receive`` are secret and stay out of ``repr``.
    ``handshake_hash`` is bound to every record.
    """

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)
    handshake_hash: bytes


def parse_preface(data: bytes) -> Preface:
    """Check the 8 bytes of a preface.

    Raises:
        HandshakeFailed: Not 8 bytes, another magic, an unknown type, or a
            length that is not the type's.
        ProtocolVersionMismatch: The magic is right and the version is not ours.
            A receiver answers with ``version_notice()``.
    """
    if len(data) != PREFACE_SIZE:
        raise HandshakeFailed(f"a preface has {PREFACE_SIZE} bytes, {len(data)} came")
    magic, version, kind_number, length = _PREFACE.unpack(data)
    if magic != MAGIC:
        raise HandshakeFailed("the peer does not speak Flatship: its first bytes are another magic")
    if version != PROTOCOL_VERSION:
        raise ProtocolVersionMismatch(version)
    try:
        kind = PrefaceKind(kind_number)
    except ValueError:
        raise HandshakeFailed(f"preface of unknown type {kind_number}") from None
    if length != _LENGTHS[kind]:
        raise HandshakeFailed(
            f"preface of type {kind_number} promises {length} bytes, {_LENGTHS[kind]} expected"
        )
    return Preface(kind, length)


def version_notice() -> bytes:
    """The 8 bytes that tell a peer of another version which one this end speaks."""
    return _encode_preface(PrefaceKind.VERSION_NOTICE)


def pair_psk(secret: bytes) -> bytes:
    """The psk, 32 bytes, of the handshakes that use an invitation's ``secret``."""
    return _expand(secret, b"flatship/1 pair")


def standing_psk(secret: bytes) -> bytes:
    """The psk, 32 bytes, of a pair that was joined by an invitation's ``secret``."""
    return _expand(secret, b"flatship/1 psk")


class Initiator:
    """The sender's end of one handshake.

    Args:
        static_private: The sender's identity, 32 bytes.
        receiver_public: The key the receiver must prove to hold, 32 bytes.
        psk: 32 bytes; zeros where the pair has none.
        ephemeral_private: 32 random bytes, for this handshake only.
        invitation: Identifier, 16 bytes, of the invitation this call accepts.

    Raises:
        UsageError: ``psk`` or ``invitation`` has another size.
    """

    def __init__(
        self,
        static_private: bytes,
        receiver_public: bytes,
        psk: bytes,
        ephemeral_private: bytes,
        invitation: bytes | None = None,
    ) -> None:
        if invitation is not None and len(invitation) != INVITATION_ID_SIZE:
            raise UsageError(
                f"an invitation id has {INVITATION_ID_SIZE} bytes, this one has {len(invitation)}"
            )
        self._receiver_public = receiver_public
        self._invitation = invitation
        self._preface = _encode_preface(PrefaceKind.INITIATION)
        self._noise = HandshakeState(
            initiator=True,
            prologue=_PROLOGUE + self._preface,
            static_private=static_private,
            ephemeral_private=ephemeral_private,
            remote_static=receiver_public,
        )
        self._noise.set_psk(psk)

    def initiation(self) -> bytes:
        """The 184 bytes to send first. Call once.

        Raises:
            HandshakeFailed: The receiver's public key is not a usable point.
            UsageError: Called before.
        """
        payload = _INITIATION_PAYLOAD.pack(
            0 if self._invitation is None else _HAS_INVITATION, self._invitation or b"", b""
        )
        head = self._preface + self._noise.write_message(payload)
        return head + _mac1(self._receiver_public, head)

    def read_response(self, data: bytes) -> Keys:
        """Complete the handshake with what the receiver sent: 72 bytes, or a version notice.

        Raises:
            ProtocolVersionMismatch: A version notice. It is not authenticated:
                report it, do nothing else about it.
            HandshakeFailed: Anything else but the response to this initiation
                from the owner of the receiver's key and the psk.
            UsageError: No initiation was made, or this handshake is over.
        """
        preface = parse_preface(data[:PREFACE_SIZE])
        body = _body_of(preface, PrefaceKind.RESPONSE, data)
        if self._noise.read_message(body) != bytes(RESPONSE_PAYLOAD_SIZE):
            raise HandshakeFailed("the response's reserved bytes are not zero")
        from_sender, to_sender = self._noise.split()
        return Keys(from_sender, to_sender, self._noise.handshake_hash)


class Responder:
    """The receiver's end of one handshake.

    Args:
        static_private: The receiver's identity, 32 bytes.
        ephemeral_private: 32 random bytes, for this handshake only.
    """

    def __init__(self, static_private: bytes, ephemeral_private: bytes) -> None:
        self._static_private = static_private
        self._ephemeral_private = ephemeral_private
        self._noise: HandshakeState | None = None

    def read_initiation(self, data: bytes) -> Initiation:
        """Who calls. Anybody may have replayed it: it proves nothing until HELLO opens.

        Args:
            data: The 184 bytes that came first.

        Raises:
            ProtocolVersionMismatch: Answer with ``version_notice()`` and close.
            HandshakeFailed: Close without a word. Where mac1 is wrong, the
                caller does not know this receiver's public key, and no
                Diffie-Hellman was spent on it.
            UsageError: An initiation was read before.
        """
        if self._noise is not None:
            raise UsageError("one handshake reads one initiation")
        preface = parse_preface(data[:PREFACE_SIZE])
        body = _body_of(preface, PrefaceKind.INITIATION, data)
        expected = _mac1(public_key(self._static_private), data[:-MAC1_SIZE])
        if not hmac.compare_digest(expected, data[-MAC1_SIZE:]):
            raise HandshakeFailed("mac1 is wrong: the caller does not know this receiver's key")
        noise = HandshakeState(
            initiator=False,
            prologue=_PROLOGUE + data[:PREFACE_SIZE],
            static_private=self._static_private,
            ephemeral_private=self._ephemeral_private,
        )
        invitation = _parse_invitation(noise.read_message(body[:-MAC1_SIZE]))
        self._noise = noise
        return Initiation(noise.remote_static, invitation)

    def respond(self, psk: bytes) -> tuple[bytes, Keys]:
        """The 72 bytes to send back, and the keys. Call once.

        Args:
            psk: 32 bytes, chosen by the initiation's key and invitation; zeros
                where the pair has none.

        Raises:
            HandshakeFailed: The caller's ephemeral key is not a usable point.
            UsageError: No initiation was read, this handshake is over, or
                ``psk`` has another size.
        """
        if self._noise is None:
            raise UsageError("there is no initiation to respond to")
        self._noise.set_psk(psk)
        message = self._noise.write_message(bytes(RESPONSE_PAYLOAD_SIZE))
        from_sender, to_sender = self._noise.split()
        keys = Keys(to_sender, from_sender, self._noise.handshake_hash)
        return _encode_preface(PrefaceKind.RESPONSE) + message, keys


def _encode_preface(kind: PrefaceKind) -> bytes:
    return _PREFACE.pack(MAGIC, PROTOCOL_VERSION, kind, _LENGTHS[kind])


def _body_of(preface: Preface, wanted: PrefaceKind, data: bytes) -> bytes:
    if preface.kind is not wanted:
        raise HandshakeFailed(f"preface of type {preface.kind}, {wanted} expected")
    if len(data) != PREFACE_SIZE + preface.length:
        raise HandshakeFailed(f"{len(data)} bytes came, {PREFACE_SIZE + preface.length} expected")
    return data[PREFACE_SIZE:]


def _mac1(receiver_public: bytes, head: bytes) -> bytes:
    key = hashlib.sha256(b"mac1" + receiver_public).digest()
    return hmac.digest(key, head, "sha256")[:MAC1_SIZE]


def _parse_invitation(payload: bytes) -> bytes | None:
    flags, invitation, reserved = _INITIATION_PAYLOAD.unpack(payload)
    if flags & ~_HAS_INVITATION or any(reserved):
        raise HandshakeFailed("the initiation's reserved bits and bytes are not zero")
    if flags & _HAS_INVITATION:
        return bytes(invitation)
    if invitation != _NO_INVITATION:
        raise HandshakeFailed("the initiation carries an invitation that its flags deny")
    return None


def _expand(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=b"", info=info).derive(secret)
