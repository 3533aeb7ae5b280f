"""One run at a time sends a VM to a receiver, and each session of it is a new epoch.

The file outlives the run: whoever comes next under the same name takes over
what an earlier run may have left open at the receiver.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec

from flatship_protocol.errors import TransferError
from flatship_sender.connecting import SessionName
from flatship_sender.refusals import TRY_AGAIN
from flatship_service import files
from flatship_service.errors import ConfigError

FOLDER: Final = "sessions"
SESSION_ID_SIZE: Final = 16  # bytes

# Far beyond what is ever counted to, and within the 64 bits that an epoch has on the wire.
_LAST_EPOCH: Final = (1 << 63) - 1
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


class AlreadySending(TransferError):
    """Another process is sending the same VM to the same receiver."""

    exit_code = 11


class EpochNotNoted(TransferError):
    """The next session cannot be made durable, and so it cannot begin; make room.

    Args:
        path: The file that should have remembered it.
        error: What the system said.
    """

    exit_code = TRY_AGAIN

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} cannot be written: {error.strerror or error};"
            " see to it that it can, and run the same command again"
        )


class _Noted(msgspec.Struct, forbid_unknown_fields=True):
    session_id: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * SESSION_ID_SIZE}}}$")]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=_LAST_EPOCH)]


class Claim:
    """The right to send a machine to a receiver, while ``claim`` holds it.

    Args:
        path: The file that remembers the session and its last epoch.

    Raises:
        ConfigError: That file is damaged.
        EpochNotNoted: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted = _last(path)
        self.current = self.renew()
        """The incarnation that is durable, and may be used."""

    def renew(self) -> SessionName:
        """Make the next incarnation of the session durable, then return it.

        Raises:
            EpochNotNoted: It could not be; ``current`` is what it was.
        """
        following = _Noted(self._noted.session_id, self._noted.epoch + 1)
        try:
            files.replace(self._path, msgspec.json.encode(following))
        except OSError as error:
            raise EpochNotNoted(self._path, error) from error
        self._noted = following
        self.current = SessionName(bytes.fromhex(following.session_id), following.epoch)
        return self.current


@contextmanager
def claim(state: Path, receiver: str, vm: str) -> Iterator[Claim]:
    """Hold the right to send ``vm`` to ``receiver``; an epoch is durable before it is used.

    Args:
        state: The sender's state folder.
        receiver: Its name.
        vm: The machine's name.

    Raises:
        AlreadySending: Somebody else holds it.
        ConfigError: The file that remembers it is damaged.
        EpochNotNoted: The file, or the one that is locked, cannot be written.
    """
    folder = state / FOLDER
    path = folder / file_name(receiver, vm)
    lock = path.with_suffix(".lock")
    try:
        files.make_private_folder(folder)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EpochNotNoted(lock, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadySending(
                f"another flatship-sender is sending {vm} to {receiver}; wait for it or stop it"
            ) from None
        yield Claim(path)
    finally:
        os.close(descriptor)


def file_name(receiver: str, vm: str) -> str:
    """The name of a file that is about one machine and one receiver, and about no others."""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):x}", f"{receiver}%{vm}") + ".json"


def _last(path: Path) -> _Noted:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Noted)
    except FileNotFoundError:
        return _Noted(secrets.token_hex(SESSION_ID_SIZE), 0)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is not readable: {error}; remove it") from error
