"""``serve``: the daemon."""

import asyncio
from pathlib import Path
from typing import Final

import click

from flatship_protocol.endpoint import Endpoint
from flatship_sender.commands.daemon_options import socket_option
from flatship_sender.commands.options import ADDRESS
from flatship_sender.config import DEFAULT_JOBS, MAX_JOBS, configure
from flatship_sender.control.client import socket_path
from flatship_sender.serve import Settings
from flatship_sender.serve import serve as serve_until_stopped
from flatship_service import __version__, logs
from flatship_service.cli import config_option, state_option, tell
from flatship_service.errors import ConfigError
from flatship_service.paths import state_folder

BAD_CONFIGURATION: Final = 78  # RestartPreventExitStatus of the unit


@click.command(short_help="Send what is in the queue, until SIGTERM.")
@click.option("--http", type=ADDRESS, help="Where metrics are served.  [default: 127.0.0.1:9472]")
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, MAX_JOBS),
    help=f"How many jobs run at once.  [default: {DEFAULT_JOBS}]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines are written, on standard error.",
)
@config_option
@state_option
@socket_option
def serve(
    http: Endpoint | None,
    jobs: int | None,
    log_format: str,
    config: Path | None,
    state: Path | None,
    socket: Path | None,
) -> int:
    """Be the daemon of a state folder: send the jobs of its queue until SIGTERM."""
    file = None if config is None else config.absolute()
    try:
        said = configure(file)
        logs.configure(said.log_level, as_json=log_format == "json")
        folder = state_folder("sender", state).absolute()
        settings = Settings(folder, file, said, socket_path(folder, socket), http, jobs)
        asyncio.run(serve_until_stopped(settings, __version__))
    except ConfigError as error:
        tell(f"error: {error}")
        return BAD_CONFIGURATION
    return 0
