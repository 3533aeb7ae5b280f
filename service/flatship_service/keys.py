"""Key files: the identity of a daemon, and secrets of 32 bytes.

A key is one line of base64, as WireGuard writes it. Secret files must be
readable by their owner alone.
"""

import base64
import binascii
import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flatship_service import files
from flatship_service.errors import KeyFileError
from flatship_service.secret_files import read_secret_file

KEY_SIZE: Final = 32  # bytes
PRIVATE_NAME: Final = "identity.key"
PUBLIC_NAME: Final = "identity.pub"
PUBLIC_FILE: Final = 0o644

_MAX_FILE: Final = 4096  # bytes; a key file holds 45


@dataclass(frozen=True, slots=True)
class Identity:
    """An X25519 key pair, 32 bytes each. Its repr does not show the private key."""

    private: bytes = field(repr=False)
    public: bytes

    @property
    def fingerprint(self) -> str:
        """What operators compare."""
        return fingerprint(self.public)


def fingerprint(public: bytes) -> str:
    """Return ``SHA256:`` and the digest of a public key in base64 without padding, as SSH does."""
    digest = hashlib.sha256(public).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def format_key(key: bytes) -> str:
    """Return a key of 32 bytes as one word: 44 characters of base64."""
    return base64.b64encode(key).decode("ascii")


def parse_key(text: str) -> bytes:
    """Return the 32 bytes that ``text`` stands for.

    Raises:
        ValueError: Not base64, or not 32 bytes. The message does not repeat
            ``text``, which may be a secret.
    """
    try:
        key = base64.b64decode(text.strip().encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError(
            f"expected a key in base64 (44 characters), got {len(text)} characters "
            "that are not base64"
        ) from None
    if len(key) != KEY_SIZE:
        raise ValueError(
            f"expected a key of {KEY_SIZE} bytes (44 characters), got {len(key)} bytes"
        )
    return key


def load_or_create_identity(folder: Path) -> Identity:
    """Return the identity kept in ``folder``; make one at first use.

    ``identity.pub`` is only a copy for people, and is put right when it does
    not match. Two processes that start together get the same identity.

    Raises:
        KeyFileError: The private key is unreadable, readable by others, or no key.
    """
    path = folder / PRIVATE_NAME
    try:
        private = _read_or_create_private(path)
        public = _public_of(private)
        _keep_public_copy(folder / PUBLIC_NAME, public)
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}") from error
    return Identity(private, public)


def read_secret(path: Path) -> bytes:
    """Return the 32 bytes that a secret file holds.

    Raises:
        KeyFileError: Missing, not a regular file, readable by others, or no key.
    """
    content = read_secret_file(path, "key file", _MAX_FILE)
    try:
        return parse_key(content.decode("utf-8", "replace"))
    except ValueError as error:
        raise KeyFileError(f"key file {path}: {error}") from None


def write_secret(path: Path, secret: bytes) -> None:
    """Keep 32 secret bytes in ``path``, in the place of what it holds; durable when it returns."""
    files.replace(path, _line(secret))


def _read_or_create_private(path: Path) -> bytes:
    # Imported here: commands that need no key should not wait for OpenSSL.
    from cryptography.hazmat.primitives.asymmetric.x25519 import (  # noqa: PLC0415
        X25519PrivateKey,
    )

    if not path.exists():
        # If another process was first, its key is ours.
        with contextlib.suppress(FileExistsError):
            files.create(path, _line(X25519PrivateKey.generate().private_bytes_raw()))
    return read_secret(path)


def _public_of(private: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import (  # noqa: PLC0415
        X25519PrivateKey,
    )

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _keep_public_copy(path: Path, public: bytes) -> None:
    if not path.exists() or path.read_bytes() != _line(public):
        files.replace(path, _line(public), PUBLIC_FILE)


def _line(key: bytes) -> bytes:
    return format_key(key).encode("ascii") + b"\n"
