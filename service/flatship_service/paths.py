"""Where configuration and state live unless the operator says otherwise."""

import os
import stat
from pathlib import Path
from typing import Final, Literal

from flatship_service import files
from flatship_service.errors import ConfigError

Role = Literal["sender", "receiver"]

SYSTEM_CONFIG: Final = Path("/etc/flatship")
SYSTEM_STATE: Final = Path("/var/lib/flatship")


def default_config_file(role: Role) -> Path:
    """``/etc/flatship/ROLE.toml`` for root, under XDG_CONFIG_HOME for everybody else."""
    folder = SYSTEM_CONFIG if _is_root() else _xdg("XDG_CONFIG_HOME", ".config")
    return folder / f"{role}.toml"


def default_state_folder(role: Role) -> Path:
    """``/var/lib/flatship/ROLE`` for root, under XDG_STATE_HOME for everybody else."""
    folder = SYSTEM_STATE if _is_root() else _xdg("XDG_STATE_HOME", ".local/state")
    return folder / role


def state_folder(role: Role, override: Path | None = None) -> Path:
    """Return the folder of keys, peers, journal and queue; make it, private, if it is missing.

    Raises:
        ConfigError: It cannot be made, is no folder, or others may write to
            it, and with that replace keys and peers.
    """
    path = override if override is not None else default_state_folder(role)
    try:
        files.make_private_folder(path)
        status = path.stat()
    except OSError as error:
        raise ConfigError(
            f"state folder {path}: {error.strerror}; make it or choose another with --state"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"state folder {path} is not a folder; choose another with --state")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"state folder {path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others "
            f"can replace its keys; run: chmod go-w {path}"
        )
    return path


def _is_root() -> bool:
    return os.geteuid() == 0


def _xdg(variable: str, default: str) -> Path:
    """The base folder of the XDG specification; a relative path is to be ignored."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "flatship"
