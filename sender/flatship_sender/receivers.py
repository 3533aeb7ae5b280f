"""The receivers that a sender knows: ``receivers.d/NAME.toml`` and the psk beside it."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.constants import KEY_SIZE
from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.errors import UsageError
from flatship_service import configfile, files
from flatship_service.errors import ConflictError, NotFoundError
from flatship_service.keys import (
    fingerprint,
    format_key,
    parse_key,
    read_secret,
    write_secret,
)

FOLDER: Final = "receivers.d"
NO_PSK: Final = bytes(KEY_SIZE)  # SPEC.md, "Handshake": keys entered by hand

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that can be sent to. Its repr does not show the psk.

    Args:
        name: What the operator calls it.
        endpoint: Where it listens.
        public: Its static public key, 32 bytes.
        psk: 32 bytes; zeros for keys that were entered by hand.
    """

    name: str
    endpoint: Endpoint
    public: bytes
    psk: bytes = field(default=NO_PSK, repr=False)

    def __str__(self) -> str:
        return f"receiver {self.name} at {self.endpoint}"

    @property
    def fingerprint(self) -> str:
        """What operators compare."""
        return fingerprint(self.public)


class _File(msgspec.Struct):
    endpoint: Endpoint
    public_key: bytes
    psk: str | None = None  # a file, relative to the folder


@dataclass(frozen=True, slots=True)
class Receivers:
    """The receivers kept in a sender's state folder.

    Args:
        state: The sender's state folder.
    """

    state: Path

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(path.stem for path in self._folder.glob("*.toml"))

    def load(self, name: str) -> Receiver:
        """Return the receiver of this name.

        Raises:
            NotFoundError: There is none; lists those there are.
            ConfigError, KeyFileError: Its file, or its psk's, is wrong.
            UsageError: No receiver can have this name.
        """
        path = self._path(name)
        if not path.exists():
            known = ", ".join(self.names()) or "none; pair with one by flatship-sender join"
            raise NotFoundError(f"there is no receiver {name}; known: {known}")
        parsers = {Endpoint: parse_endpoint, bytes: parse_key}
        content = configfile.load(path, _File, must_exist=True, parsers=parsers).value
        psk = NO_PSK if content.psk is None else read_secret(self._folder / content.psk)
        return Receiver(name, content.endpoint, content.public_key, psk)

    def check_free(self, name: str, public: bytes) -> None:
        """Raise what ``save`` would raise; a pairing can ask before it begins.

        Raises:
            ConflictError: Another receiver has this name.
            ConfigError, UsageError: As for ``load``.
        """
        if not self._path(name).exists():
            return
        present = self.load(name)
        if present.public != public:
            raise ConflictError(
                f"receiver {name} is known with the key {present.fingerprint}, this one has "
                f"{fingerprint(public)}; choose another name with --as, or remove "
                f"{self._path(name)} if the receiver was set up anew"
            )

    def save(self, receiver: Receiver) -> None:
        """Keep ``receiver``; the same one under the same name is updated. Durable when it returns.

        Raises:
            ConflictError: Another receiver has this name; nothing was changed.
            UsageError: No receiver can have this name.
        """
        path = self._path(receiver.name)
        files.make_private_folder(self._folder)
        with files.locked(self._folder / ".lock"):
            self.check_free(receiver.name, receiver.public)
            psk = path.with_suffix(".psk")
            lines = [
                f"endpoint = {json.dumps(str(receiver.endpoint))}",
                f'public_key = "{format_key(receiver.public)}"',
            ]
            if receiver.psk != NO_PSK:
                write_secret(psk, receiver.psk)
                lines.append(f"psk = {json.dumps(psk.name)}")
            files.replace(path, "".join(line + "\n" for line in lines).encode("ascii"))

    @property
    def _folder(self) -> Path:
        return self.state / FOLDER

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"receiver name {name!r}: expected up to 63 letters, digits, dots, hyphens and "
                "underscores, the first a letter or a digit"
            )
        return self._folder / f"{name}.toml"


def default_name(endpoint: Endpoint) -> str:
    """What a receiver is called when the operator does not say: its host."""
    return endpoint.host.replace(":", "-").strip("-.")
