"""Noise_IKpsk2_25519_AESGCM_SHA256, in the structure of the Noise specification (revision 34).

The objects are the specification's: a CipherState encrypts, a SymmetricState
mixes keys and transcript, a HandshakeState walks the pattern's tokens. One
pattern is supported and nothing is negotiated. Nothing here draws entropy:
the ephemeral key is an argument, and must be fresh for every handshake.
"""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flatship_protocol.constants import KEY_SIZE, TAG_SIZE
from flatship_protocol.errors import HandshakeFailed, UsageError

PROTOCOL_NAME: Final = b"Noise_IKpsk2_25519_AESGCM_SHA256"
HASH_SIZE: Final = 32  # bytes, SHA-256
REKEY_NONCE: Final = (1 << 64) - 1  # reserved by Noise; no message may take it

# The pattern: the responder's static key is known beforehand; a message a row,
# the initiator's first. In a DH token the initiator's key is named first.
PATTERN: Final = (
    ("e", "es", "s", "ss"),
    ("e", "ee", "se", "psk"),
)


def encode_nonce(sequence: int) -> bytes:
    """The 12-byte AES-GCM nonce of message number ``sequence``, 0 to 2^64 - 1."""
    return sequence.to_bytes(12, "big")


def rekey(key: bytes) -> bytes:
    """The 32-byte key that follows ``key``; it does not lead back. Noise section 4.2, REKEY."""
    return AESGCM(key).encrypt(encode_nonce(REKEY_NONCE), bytes(KEY_SIZE), b"")[:KEY_SIZE]


def public_key(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a private key of 32 bytes.

    Raises:
        ValueError: ``private`` is not 32 bytes long.
    """
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def diffie_hellman(private: bytes, public: bytes) -> bytes:
    """The 32-byte secret that ``private`` shares with the owner of ``public``.

    Raises:
        HandshakeFailed: ``public`` is not 32 bytes, or a point of small order
            that makes the secret zero whatever the private key.
    """
    key = X25519PrivateKey.from_private_bytes(private)
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise HandshakeFailed("the peer's public key is not a usable X25519 point") from None


def _derive(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """Noise section 4.3, HKDF: ``outputs`` keys of 32 bytes."""
    length = outputs * KEY_SIZE
    okm = HKDF(algorithm=SHA256(), length=length, salt=chaining_key, info=b"").derive(material)
    return [okm[start : start + KEY_SIZE] for start in range(0, length, KEY_SIZE)]


class CipherState:
    """A key and the number of messages it has protected. Noise section 5.1."""

    __slots__ = ("_aead", "_sequence")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._sequence = 0

    def encrypt_with_ad(self, associated: bytes, plaintext: bytes) -> bytes:
        """Ciphertext of ``plaintext``, the 16-byte tag at its end."""
        sequence = self._sequence
        self._sequence += 1
        return self._aead.encrypt(encode_nonce(sequence), plaintext, associated)

    def decrypt_with_ad(self, associated: bytes, ciphertext: bytes) -> bytes:
        """Plaintext of ``ciphertext``; after a failure the count stands still.

        Raises:
            HandshakeFailed: Shorter than a tag, or the tag does not match.
        """
        try:
            plaintext = self._aead.decrypt(encode_nonce(self._sequence), ciphertext, associated)
        except InvalidTag:
            raise HandshakeFailed(
                "a handshake message does not open: wrong key, wrong psk, or altered on the way"
            ) from None
        self._sequence += 1
        return plaintext


class SymmetricState:
    """Chaining key, transcript hash and current cipher. Noise section 5.2.

    The cipher starts absent. A psk pattern mixes a key with its first token,
    so nothing is ever encrypted without one.
    """

    __slots__ = ("_chaining_key", "_cipher", "handshake_hash")

    def __init__(self, protocol_name: bytes) -> None:
        # At most 32 bytes long, a name is taken as it is; a longer one would be hashed.
        assert len(protocol_name) <= HASH_SIZE
        self.handshake_hash = protocol_name.ljust(HASH_SIZE, b"\0")
        self._chaining_key = self.handshake_hash
        self._cipher: CipherState | None = None

    def mix_hash(self, data: bytes) -> None:
        """Add ``data`` to the transcript."""
        self.handshake_hash = hashlib.sha256(self.handshake_hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        """Make everything that follows depend on ``material``."""
        self._chaining_key, key = _derive(self._chaining_key, material, 2)
        self._cipher = CipherState(key)

    def mix_key_and_hash(self, material: bytes) -> None:
        """``mix_key`` and ``mix_hash`` at once, as the psk token wants it."""
        self._chaining_key, digest, key = _derive(self._chaining_key, material, 3)
        self.mix_hash(digest)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Ciphertext of ``plaintext``, bound to the transcript and added to it."""
        assert self._cipher is not None
        ciphertext = self._cipher.encrypt_with_ad(self.handshake_hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """The reverse of ``encrypt_and_hash``.

        Raises:
            HandshakeFailed: As ``CipherState.decrypt_with_ad``.
        """
        assert self._cipher is not None
        plaintext = self._cipher.decrypt_with_ad(self.handshake_hash, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Keys of 32 bytes: from the initiator, to the initiator."""
        from_initiator, to_initiator = _derive(self._chaining_key, b"", 2)
        return from_initiator, to_initiator


class HandshakeState:
    """One end of one handshake. Noise section 5.3.

    Messages must be written and read in the pattern's order. A state that
    failed is finished: every later call raises.

    Args:
        initiator: Whether this end sends the first message.
        prologue: What both ends must agree on besides the keys, any length.
        static_private: This end's long-term key, 32 bytes.
        ephemeral_private: 32 bytes from a good source, for this handshake only.
        remote_static: The responder's public key, 32 bytes. The initiator must
            know it; a responder learns the initiator's from message 1.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        static_private: bytes,
        ephemeral_private: bytes,
        remote_static: bytes | None = None,
    ) -> None:
        if initiator != (remote_static is not None):
            raise UsageError("the initiator, and only the initiator, names the other end's key")
        self._initiator = initiator
        self._private = {"s": static_private, "e": ephemeral_private}
        self._remote: dict[str, bytes] = {}
        self._psk: bytes | None = None
        self._next: int | None = 0  # row of PATTERN; None while one is walked and after a failure
        self._symmetric = SymmetricState(PROTOCOL_NAME)
        self._symmetric.mix_hash(prologue)
        if remote_static is not None:
            self._remote["s"] = remote_static
        self._symmetric.mix_hash(remote_static or public_key(static_private))

    @property
    def remote_static(self) -> bytes:
        """The other end's public key; at a responder, known once message 1 is read."""
        return self._remote["s"]

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes that both ends share and no other handshake has, once it is complete."""
        self._require_complete()
        return self._symmetric.handshake_hash

    def set_psk(self, psk: bytes) -> None:
        """Set the pre-shared key, 32 bytes. Message 2 needs it; until then it may be set."""
        if len(psk) != KEY_SIZE:
            raise UsageError(f"a psk has {KEY_SIZE} bytes, this one has {len(psk)}")
        self._psk = psk

    def write_message(self, payload: bytes) -> bytes:
        """The next message, carrying ``payload``.

        Raises:
            HandshakeFailed: The other end's key is not a usable point.
            UsageError: It is not this end's turn, or the psk is missing.
        """
        row = self._begin(writing=True)
        message = bytearray()
        for token in PATTERN[row]:
            match token:
                case "e":
                    own = public_key(self._private["e"])
                    message += own
                    self._mix_ephemeral(own)
                case "s":
                    message += self._symmetric.encrypt_and_hash(public_key(self._private["s"]))
                case "psk":
                    self._mix_psk()
                case _:
                    self._mix_shared(token)
        message += self._symmetric.encrypt_and_hash(payload)
        self._next = row + 1
        return bytes(message)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the next message.

        Raises:
            HandshakeFailed: Too short, not a usable point, or it does not open.
            UsageError: It is not the other end's turn, or the psk is missing.
        """
        row = self._begin(writing=False)
        rest = message
        for token in PATTERN[row]:
            match token:
                case "e":
                    self._remote["e"], rest = _cut(rest, KEY_SIZE)
                    self._mix_ephemeral(self._remote["e"])
                case "s":
                    sealed, rest = _cut(rest, KEY_SIZE + TAG_SIZE)
                    self._remote["s"] = self._symmetric.decrypt_and_hash(sealed)
                case "psk":
                    self._mix_psk()
                case _:
                    self._mix_shared(token)
        payload = self._symmetric.decrypt_and_hash(rest)
        self._next = row + 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys, 32 bytes each: from the initiator, to the initiator.

        Raises:
            UsageError: The handshake is not complete.
        """
        self._require_complete()
        return self._symmetric.split()

    def _begin(self, *, writing: bool) -> int:
        row = self._next
        if row is None:
            raise UsageError("this handshake has failed; start another one")
        initiators_turn = row % 2 == 0
        if row == len(PATTERN) or writing != (initiators_turn == self._initiator):
            raise UsageError("handshake messages are written and read in turn, two in all")
        self._next = None
        return row

    def _require_complete(self) -> None:
        if self._next != len(PATTERN):
            raise UsageError("the handshake is not complete")

    def _mix_ephemeral(self, public: bytes) -> None:
        # A psk pattern mixes the ephemeral into the key as well: section 9.2.
        self._symmetric.mix_hash(public)
        self._symmetric.mix_key(public)

    def _mix_psk(self) -> None:
        if self._psk is None:
            raise UsageError("message 2 needs a psk, and none was set")
        self._symmetric.mix_key_and_hash(self._psk)

    def _mix_shared(self, token: str) -> None:
        initiators, responders = token[0], token[1]
        ours, theirs = (initiators, responders) if self._initiator else (responders, initiators)
        self._symmetric.mix_key(diffie_hellman(self._private[ours], self._remote[theirs]))


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise HandshakeFailed(f"handshake message is short: {len(message)} bytes, {size} expected")
    return message[:size], message[size:]
