"""``jobs``: what the daemon has to do. It imports little, for people wait for it."""

import time
from pathlib import Path
from typing import Final

import click
import msgspec

from flatship_sender.commands.daemon_options import daemon_at, daemon_options
from flatship_sender.control.client import Daemon
from flatship_sender.control.job_table import Row, render

SCHEMA_VERSION: Final = 1
PAGE: Final = 1000  # jobs asked for at once
NOT_ENDED: Final = ("queued", "running", "waiting", "paused")


class _Page(msgspec.Struct):
    jobs: list[msgspec.Raw]
    next: int | None


class _All(msgspec.Struct):
    jobs: list[msgspec.Raw]
    schema_version: int = SCHEMA_VERSION


@click.command(short_help="List the daemon's jobs.")
@click.option("--all", "everything", is_flag=True, help="Those that have ended, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def jobs(everything: bool, as_json: bool, state: Path | None, socket: Path | None) -> None:
    """List the jobs that the daemon has to do, in the order of their numbers."""
    found = _fetch(daemon_at(state, socket), "" if everything else _states())
    if as_json:
        click.echo(msgspec.json.encode(_All(found)))
    else:
        click.echo(render([msgspec.json.decode(job, type=Row) for job in found], time.time()))


def _states() -> str:
    return "".join(f"&state={state}" for state in NOT_ENDED)


def _fetch(daemon: Daemon, query: str) -> list[msgspec.Raw]:
    found: list[msgspec.Raw] = []
    after: int | None = 0
    while after is not None:
        answer = daemon.ask("GET", f"/v1/jobs?limit={PAGE}&after={after}{query}")
        page = msgspec.json.decode(answer, type=_Page)
        found += page.jobs
        after = page.next
    return found
