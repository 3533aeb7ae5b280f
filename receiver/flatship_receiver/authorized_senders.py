"""The file ``authorized_senders`` and the psks beside it.

People edit it, commands rewrite it, and ``serve`` reads it again when it has
changed. A file that cannot be read authorises nobody: what a wrong line was
meant to forbid is not known.
"""

import hashlib
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from flatship_protocol.errors import UsageError
from flatship_receiver.peers import NO_PSK, Peer, format_peer, parse_peer
from flatship_service import files
from flatship_service.errors import ConfigError, NotFoundError
from flatship_service.keys import read_secret, write_secret

FILE_NAME: Final = "authorized_senders"
PSK_FOLDER: Final = "psk"
MIN_PREFIX: Final = 4  # characters of a fingerprint that select a peer

_ALGORITHM: Final = "SHA256:"

# What tells one content of the file from another: inode, size, time of change.
_Stamp = tuple[int, int, int]


@dataclass(slots=True)
class AuthorizedSenders:
    """The peers of a receiver, kept in its state folder.

    Args:
        state: The receiver's state folder.

    Several processes may use the same folder; one object belongs to one thread.
    """

    state: Path
    _stamp: _Stamp | None = field(default=None, init=False)
    _peers: dict[bytes, Peer] = field(default_factory=dict, init=False, repr=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.state / FILE_NAME

    def find(self, public: bytes) -> Peer | None:
        """Return the peer with this public key, as the file stands now.

        Raises:
            ConfigError: The file is wrong or others may write to it. Names the line.
            KeyFileError: A psk is unreadable or readable by others.
        """
        self._refresh()
        return self._peers.get(public)

    def peers(self) -> tuple[Peer, ...]:
        """Return all peers in the order of the file.

        Raises:
            ConfigError, KeyFileError: As for ``find``.
        """
        self._refresh()
        return tuple(self._peers.values())

    def add(self, peer: Peer) -> None:
        """Authorise ``peer``; a line with the same key is replaced. Durable when it returns.

        Raises:
            ConfigError, KeyFileError: As for ``find``; nothing was changed.
            ValueError: A name cannot be written on a line; nothing was changed.
        """
        line = format_peer(peer)
        with files.locked(self._lock):
            lines = self._lines()
            self._parse(lines)
            self._write_psk(peer)
            kept = [line if _is_of(old, peer.public) else old for old in lines]
            if line not in kept:
                kept.append(line)
            self._write(kept)

    def revoke(self, prefix: str) -> Peer:
        """Remove the one peer whose fingerprint begins with ``prefix``, and return it.

        Args:
            prefix: With or without ``SHA256:``, at least four characters of the digest.

        Raises:
            NotFoundError: No such peer; lists those there are.
            UsageError: Too short, or it fits several.
            ConfigError, KeyFileError: As for ``find``; nothing was changed.
        """
        with files.locked(self._lock):
            lines = self._lines()
            peer = _select(list(self._parse(lines).values()), prefix.removeprefix(_ALGORITHM))
            self._write([line for line in lines if not _is_of(line, peer.public)])
            self._psk_file(peer.public).unlink(missing_ok=True)
        return peer

    @property
    def _lock(self) -> Path:
        return self.state / f".{FILE_NAME}.lock"

    def _psk_file(self, public: bytes) -> Path:
        return self.state / PSK_FOLDER / hashlib.sha256(public).hexdigest()

    def _refresh(self) -> None:
        stamp = self._current_stamp()
        if stamp == self._stamp:
            return
        self._peers = self._parse(self._lines())
        # The stamp from before the reading: a change during it is seen next time.
        self._stamp = stamp

    def _current_stamp(self) -> _Stamp:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from error
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{self.path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others can "
                f"authorise themselves; check its lines, then run: chmod go-w {self.path}"
            )
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from error

    def _parse(self, lines: list[str]) -> dict[bytes, Peer]:
        peers: dict[bytes, Peer] = {}
        for number, line in enumerate(lines, start=1):
            if not _is_peer(line):
                continue
            try:
                peer = parse_peer(line.strip())
                if peer.public in peers:
                    raise ValueError(f"the key of {peers[peer.public].name} a second time")
            except ValueError as error:
                raise ConfigError(f"{self.path}, line {number}: {error}") from None
            peers[peer.public] = replace(peer, psk=self._read_psk(peer.public))
        return peers

    def _read_psk(self, public: bytes) -> bytes:
        path = self._psk_file(public)
        return read_secret(path) if path.exists() else NO_PSK

    def _write_psk(self, peer: Peer) -> None:
        path = self._psk_file(peer.public)
        if peer.psk == NO_PSK:
            path.unlink(missing_ok=True)
        else:
            files.make_private_folder(path.parent)
            write_secret(path, peer.psk)

    def _write(self, lines: list[str]) -> None:
        files.replace(self.path, "".join(line + "\n" for line in lines).encode("utf-8"))


def _is_peer(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _is_of(line: str, public: bytes) -> bool:
    return _is_peer(line) and parse_peer(line.strip()).public == public


def _select(peers: list[Peer], prefix: str) -> Peer:
    if len(prefix) < MIN_PREFIX:
        raise UsageError(f"expected at least {MIN_PREFIX} characters of a fingerprint")
    chosen = [
        peer for peer in peers if peer.fingerprint.removeprefix(_ALGORITHM).startswith(prefix)
    ]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"{peer.fingerprint} ({peer.name})" for peer in chosen or peers) or "none"
    if chosen:
        raise UsageError(f"fingerprint {prefix} fits several senders: {listed}")
    raise NotFoundError(f"no sender has a fingerprint {_ALGORITHM}{prefix}…; known: {listed}")
