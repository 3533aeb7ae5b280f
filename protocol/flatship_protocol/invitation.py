"""The line by which a receiver invites a sender.

``flatship1:HOST:PORT:BLOB``, an IPv6 address in brackets. BLOB is base64url
without padding of: receiver's public key (32 bytes) | invitation id (16) |
secret (32) | checksum (4). The checksum is the start of the SHA-256 of
everything before it, host and port as written included, so that a line that
was cut or mistyped is found before a connection is made. It protects from accidents only.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from flatship_protocol.constants import KEY_SIZE
from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.errors import UsageError

PREFIX: Final = "flatship1"
ID_SIZE: Final = 16  # bytes
SECRET_SIZE: Final = 32  # bytes
CHECKSUM_SIZE: Final = 4  # bytes

_BODY_SIZE: Final = KEY_SIZE + ID_SIZE + SECRET_SIZE


class InvitationError(UsageError):
    """The text is no invitation, or was damaged on its way."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """All that a sender needs to pair with a receiver. Its repr does not show the secret.

    Args:
        endpoint: Where the receiver listens.
        public: The receiver's static public key, 32 bytes.
        id: Which invitation this is, 16 bytes.
        secret: What the psk is derived from, 32 bytes.
    """

    endpoint: Endpoint
    public: bytes
    id: bytes
    secret: bytes = field(repr=False)


def encode_invitation(invitation: Invitation) -> str:
    """Return the line for ``invitation``, without a line break."""
    body = invitation.public + invitation.id + invitation.secret
    assert len(body) == _BODY_SIZE
    start = f"{PREFIX}:{invitation.endpoint}:"
    blob = base64.urlsafe_b64encode(body + _checksum(start, body)).rstrip(b"=")
    return start + blob.decode("ascii")


def decode_invitation(text: str) -> Invitation:
    """Return what a line says; white space around it is ignored.

    Raises:
        InvitationError: Not such a line, or damaged. The message does not
            repeat the line, which holds a secret.
    """
    line = text.strip()
    if not line.startswith(PREFIX + ":"):
        raise InvitationError(
            f"this is no invitation: it does not begin with {PREFIX}: ; "
            "make one with flatship-receiver invite"
        )
    start, colon, blob = line.rpartition(":")
    try:
        padding = "=" * (-len(blob) % 4)
        raw = base64.b64decode((blob + padding).encode("ascii"), altchars=b"-_", validate=True)
        body, checksum = raw[:_BODY_SIZE], raw[_BODY_SIZE:]
        if checksum != _checksum(start + colon, body):
            raise ValueError("checksum mismatch")
        endpoint = parse_endpoint(start.removeprefix(PREFIX + ":"))
    except (ValueError, binascii.Error):
        raise InvitationError(
            "the invitation is damaged: its checksum does not match; copy the whole line again"
        ) from None
    return Invitation(
        endpoint=endpoint,
        public=body[:KEY_SIZE],
        id=body[KEY_SIZE : KEY_SIZE + ID_SIZE],
        secret=body[KEY_SIZE + ID_SIZE :],
    )


def _checksum(start: str, body: bytes) -> bytes:
    return hashlib.sha256(start.encode("utf-8") + body).digest()[:CHECKSUM_SIZE]
