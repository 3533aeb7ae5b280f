"""Names and passwords of those who may read a daemon's pages.

A users file has a line each, ``NAME:$scrypt$ln=15,r=8,p=3$SALT$HASH``, which the ``password``
commands print. It takes as long to refuse a name that nobody has as a password that is wrong.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flatship_service.errors import ConfigError
from flatship_service.secret_files import read_secret_file

MAX_USERS_FILE: Final = 1 << 20  # bytes
MIN_PASSWORD: Final = 8  # characters
MAX_PASSWORD: Final = 1024  # bytes
SALT_SIZE: Final = 16  # bytes
HASH_SIZE: Final = 32
# 32 MiB and some tenths of a second for each guess.
LOG_COST: Final = 15
BLOCK_SIZE: Final = 8
PARALLEL: Final = 3
_MAX_MEMORY: Final = 256 << 20  # bytes for one check; a line that asks for more is refused

_NAME: Final = re.compile(r"[^\x00-\x20:\x7f#][^\x00-\x1f:\x7f]{0,63}")
_HASH: Final = re.compile(
    r"\$scrypt\$ln=(?P<ln>\d{1,2}),r=(?P<r>\d{1,3}),p=(?P<p>\d{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/=]+)\$(?P<hash>[A-Za-z0-9+/=]+)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What is kept of a password. Its repr shows nothing of it."""

    log_cost: int
    block_size: int
    parallel: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, password: bytes) -> "PasswordHash":
        """Hash a password with a salt of its own."""
        made = cls(LOG_COST, BLOCK_SIZE, PARALLEL, secrets.token_bytes(SALT_SIZE), bytes(HASH_SIZE))
        return cls(LOG_COST, BLOCK_SIZE, PARALLEL, made.salt, made.derive(password))

    @classmethod
    def parse(cls, text: str) -> "PasswordHash":
        """Read what ``str`` writes.

        Raises:
            ValueError: It is none, or asks for too much memory. The message does not repeat it.
        """
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError(
                "expected $scrypt$ln=…,r=…,p=…$SALT$HASH, as the password command prints"
            )
        try:
            salt, digest = (
                base64.b64decode(match[part], validate=True) for part in ("salt", "hash")
            )
        except binascii.Error:
            raise ValueError("expected a salt and a hash in base64") from None
        made = cls(int(match["ln"]), int(match["r"]), int(match["p"]), salt, digest)
        if len(salt) < SALT_SIZE or len(digest) != HASH_SIZE:
            raise ValueError(f"expected {SALT_SIZE} bytes of salt and {HASH_SIZE} of hash")
        if not (made.log_cost and made.block_size and made.parallel) or made._memory > _MAX_MEMORY:
            raise ValueError(
                f"expected costs that take at most {_MAX_MEMORY >> 20} MiB, and no zeros"
            )
        return made

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        costs = f"ln={self.log_cost},r={self.block_size},p={self.parallel}"
        return f"$scrypt${costs}${salt}${digest}"

    def derive(self, password: bytes) -> bytes:
        """The digest of a password with these costs and this salt; takes its time."""
        return hashlib.scrypt(
            password,
            salt=self.salt,
            n=1 << self.log_cost,
            r=self.block_size,
            p=self.parallel,
            maxmem=2 * _MAX_MEMORY,
            dklen=HASH_SIZE,
        )

    @property
    def _memory(self) -> int:
        return 128 * self.block_size * ((1 << self.log_cost) + self.parallel)


class Users:
    """Who may read. Thread-safe.

    A password that was right is known again without its hash being made, for scrapes
    come every few seconds: what is kept of it is a digest under a key of this process.

    Args:
        hashes: Names and hashes, at least one.
    """

    def __init__(self, hashes: Mapping[str, PasswordHash]) -> None:
        self._hashes = dict(hashes)
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        # Somebody whom nobody is, so that a wrong name costs what a wrong password does.
        self._nobody = next(iter(self._hashes.values()))

    def is_known(self, name: str, password: bytes) -> bool:
        """Whether ``check`` has found this very pair to be right; takes no time."""
        mac = self._right.get(name)
        return mac is not None and hmac.compare_digest(mac, self._mac(password))

    def check(self, name: str, password: bytes) -> bool:
        """Whether the password is that of the name; takes as long whatever is wrong."""
        known = self._hashes.get(name)
        expected = known or self._nobody
        right = hmac.compare_digest(expected.derive(password), expected.digest)
        if known is None or not right:
            return False
        self._right[name] = self._mac(password)
        return True

    def _mac(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")


def load_users(path: Path) -> Users:
    """Read a users file; blank lines, and those that begin with ``#``, mean nothing.

    Raises:
        KeyFileError: Missing, unreadable, or readable by everybody.
        ConfigError: A line is wrong, a name comes twice, or there is nobody in it.
    """
    data = read_secret_file(path, "users file", MAX_USERS_FILE + 1, group_may_read=True)
    if len(data) > MAX_USERS_FILE:
        raise ConfigError(f"users file {path}: expected at most {MAX_USERS_FILE >> 20} MiB")
    hashes: dict[str, PasswordHash] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, text = line.partition(":")
        try:
            _check_name(name)
            if name in hashes:
                raise ValueError(f"{name!r} comes twice; keep one of the two")
            hashes[name] = PasswordHash.parse(text.strip())
        except ValueError as error:
            raise ConfigError(f"users file {path}:{number}: {error}") from None
    if not hashes:
        raise ConfigError(f"users file {path} names nobody; add a line of the password command")
    return Users(hashes)


def users_line(name: str, password: str) -> str:
    """The line of a users file for a name and a password.

    Raises:
        ValueError: One of the two cannot be used; says what was expected.
    """
    _check_name(name)
    encoded = password.encode()
    if len(password) < MIN_PASSWORD or len(encoded) > MAX_PASSWORD:
        raise ValueError(
            f"expected a password of at least {MIN_PASSWORD} characters and at most"
            f" {MAX_PASSWORD} bytes, got {len(password)} characters"
        )
    return f"{name}:{PasswordHash.of(encoded)}"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of up to 64 characters, none of them a colon")
