"""The options by which a command finds the daemon that it speaks with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from flatship_sender.control.client import Daemon, socket_path
from flatship_service.cli import state_option
from flatship_service.paths import default_state_folder

F = TypeVar("F", bound=Callable[..., Any])


def socket_option(command: F) -> F:
    """Add ``--socket PATH``."""
    return click.option(
        "--socket",
        "socket",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="The daemon's control socket; by default control.sock in the state folder.",
    )(command)


def daemon_options(command: F) -> F:
    """Add ``--state DIR`` and ``--socket PATH``."""
    return state_option(socket_option(command))


def daemon_at(state: Path | None, socket: Path | None) -> Daemon:
    """The daemon that the options name; nothing is made of what is not there."""
    return Daemon(socket_path(state or default_state_folder("sender"), socket))
