"""One run at a time sends a VM to a receiver, and each run is a new epoch of one session.

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
from flatship_sender.client import SessionName
from flatship_service import files
from flatship_service.errors import ConfigError

FOLDER: Final = "sessions"
SESSION_ID_SIZE: Final = 16  # bytes

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


class AlreadySending(TransferError):
    """Another process is sending the same VM to the same receiver."""

    exit_code = 11


class _Claim(msgspec.Struct, forbid_unknown_fields=True):
    session_id: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * SESSION_ID_SIZE}}}$")]
    epoch: Annotated[int, msgspec.Meta(ge=1)]


@contextmanager
def claim(state: Path, receiver: str, vm: str) -> Iterator[SessionName]:
    """Hold the right to send ``vm`` to ``receiver``; the epoch is durable before it is used.

    Args:
        state: The sender's state folder.
        receiver: Its name.
        vm: The machine's name.

    Raises:
        AlreadySending: Somebody else holds it.
        ConfigError: The file that remembers it is damaged.
    """
    folder = state / FOLDER
    files.make_private_folder(folder)
    path = folder / (_UNSAFE.sub(lambda found: f"%{ord(found[0]):x}", f"{receiver}%{vm}") + ".json")
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadySending(
                f"another flatship-sender is sending {vm} to {receiver}; wait for it or stop it"
            ) from None
        following = _next(path)
        files.replace(path, msgspec.json.encode(following))
        yield SessionName(bytes.fromhex(following.session_id), following.epoch)
    finally:
        os.close(descriptor)


def _next(path: Path) -> _Claim:
    try:
        last = msgspec.json.decode(path.read_bytes(), type=_Claim)
    except FileNotFoundError:
        return _Claim(secrets.token_hex(SESSION_ID_SIZE), 1)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is not readable: {error}; remove it") from error
    return _Claim(last.session_id, last.epoch + 1)
