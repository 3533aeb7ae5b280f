"""Invitations: how a sender becomes a peer without keys being copied by hand.

Each live invitation is a private file in the state folder. All that changes
one happens under a lock: ``invite`` adds while ``serve`` counts and redeems, and
a sender that comes twice at once is let in once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.handshake import standing_psk
from flatship_protocol.invitation import ID_SIZE, SECRET_SIZE
from flatship_receiver.peers import Peer, format_peer
from flatship_service import files
from flatship_service.errors import ConfigError

FOLDER: Final = "invitations"
LIFETIME: Final = 15 * 60.0  # seconds
MAX_FAILURES: Final = 5  # attempts with the right id and the wrong secret

_SUFFIX: Final = ".invitation"


class StoredInvitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An invitation as the receiver keeps it. Its repr does not show the secret."""

    name: str
    secret: bytes
    expires_at: float  # seconds since 1970
    disks: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    failures: int = 0

    def __repr__(self) -> str:
        return f"StoredInvitation(name={self.name!r}, expires_at={self.expires_at})"

    def is_live(self, now: float) -> bool:
        """Whether it may still be used at ``now``, seconds since 1970."""
        return now < self.expires_at and self.failures < MAX_FAILURES

    def peer(self, public: bytes) -> Peer:
        """The peer that whoever holds ``public`` becomes by this invitation."""
        return Peer(
            public=public,
            name=self.name,
            psk=standing_psk(self.secret),
            disks=self.disks,
            datastores=self.datastores,
        )


@dataclass(frozen=True, slots=True)
class Invitations:
    """The invitations of a receiver that are still open.

    Args:
        state: The receiver's state folder.
    """

    state: Path

    def create(
        self,
        name: str,
        *,
        now: float,
        entropy: Callable[[int], bytes],
        lifetime: float = LIFETIME,
        disks: tuple[str, ...] = (),
        datastores: tuple[str, ...] = (),
    ) -> tuple[bytes, bytes]:
        """Make an invitation and return its id (16 bytes) and secret (32 bytes).

        Args:
            name: What the peer will be called.
            now: Seconds since 1970.
            entropy: Returns so many unpredictable bytes.
            lifetime: Seconds.
            disks: Patterns, as in ``authorized_senders``; empty: every disk.
            datastores: Names; empty: every datastore.

        Durable when it returns. Invitations that are over are removed.

        Raises:
            ConfigError: The name or a pattern cannot be written in ``authorized_senders``.
        """
        identifier, secret = entropy(ID_SIZE), entropy(SECRET_SIZE)
        invitation = StoredInvitation(
            name=name, secret=secret, expires_at=now + lifetime, disks=disks, datastores=datastores
        )
        _check_writable(invitation)
        with self._locked():
            self._sweep(now)
            files.create(self._path(identifier), msgspec.json.encode(invitation))
        return identifier, secret

    def find(self, identifier: bytes, now: float) -> StoredInvitation | None:
        """Return the live invitation with this id, which stays unused."""
        invitation = self._read(self._path(identifier))
        return invitation if invitation is not None and invitation.is_live(now) else None

    def record_failure(self, identifier: bytes) -> int | None:
        """Count an attempt with a wrong secret; after the fifth the invitation is gone.

        Returns:
            How many there have been, or None if there is no such invitation.
            Durable: a restart does not give an attacker five more.
        """
        path = self._path(identifier)
        with self._locked():
            invitation = self._read(path)
            if invitation is None:
                return None
            counted = msgspec.structs.replace(invitation, failures=invitation.failures + 1)
            if counted.failures >= MAX_FAILURES:
                files.remove(path)
            else:
                files.replace(path, msgspec.json.encode(counted))
            return counted.failures

    def redeem(self, identifier: bytes, public: bytes, now: float) -> Peer | None:
        """Use the invitation up, and return the peer that it makes of ``public``.

        Call it after HELLO has opened, not before; then authorise the peer.

        Returns:
            None if the invitation is over, or somebody else has just used it.
            The file is gone, durably, before a peer is returned: after a
            crash in between the sender must be invited again.
        """
        path = self._path(identifier)
        with self._locked():
            invitation = self._read(path)
            if invitation is None or not invitation.is_live(now):
                return None
            files.remove(path)
        return invitation.peer(public)

    @property
    def _folder(self) -> Path:
        return self.state / FOLDER

    def _path(self, identifier: bytes) -> Path:
        return self._folder / f"{identifier.hex()}{_SUFFIX}"

    def _locked(self) -> AbstractContextManager[None]:
        files.make_private_folder(self._folder)
        return files.locked(self._folder / ".lock")

    def _read(self, path: Path) -> StoredInvitation | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=StoredInvitation)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path} is not readable: {error}; remove it") from error

    def _sweep(self, now: float) -> None:
        for path in self._folder.glob(f"*{_SUFFIX}"):
            invitation = self._read(path)
            if invitation is not None and not invitation.is_live(now):
                files.remove(path)


def _check_writable(invitation: StoredInvitation) -> None:
    """Find out now, not when the sender comes, that the line cannot be written."""
    try:
        format_peer(
            Peer(
                bytes(32), invitation.name, disks=invitation.disks, datastores=invitation.datastores
            )
        )
    except ValueError as error:
        raise ConfigError(f"invitation: {error}") from None
