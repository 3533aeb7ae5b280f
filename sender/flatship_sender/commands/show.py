"""``show``: one job, once or to its end."""

import sys
import time
from pathlib import Path

import click
import msgspec

from flatship_sender.commands.daemon_options import daemon_at, daemon_options
from flatship_sender.commands.steering import JOB_ID
from flatship_sender.control.answers import JobView
from flatship_sender.control.client import Daemon
from flatship_sender.control.details import render
from flatship_sender.control.following import Follower
from flatship_sender.display import choose_display
from flatship_service.cli import FAILED, tell


@click.command(short_help="Show a job: how far it is, what it waits for.")
@click.argument("number", metavar="ID", type=JOB_ID)
@click.option("--follow", is_flag=True, help="Show its progress until it has ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def show(number: int, follow: bool, as_json: bool, state: Path | None, socket: Path | None) -> int:
    """Show the job with the number ID: how far it is, what it waits for and what to do.

    With --follow it ends as the job does, and with its exit code.
    """
    daemon = daemon_at(state, socket)
    exit_code = _follow(daemon, number, as_json=as_json) if follow else 0
    answer = daemon.ask("GET", f"/v1/jobs/{number}")
    if as_json:
        click.echo(answer)
    else:
        click.echo(render(msgspec.json.decode(answer, type=JobView), time.monotonic()))
    return exit_code


def _follow(daemon: Daemon, number: int, *, as_json: bool) -> int:
    follower = Follower(daemon, number, choose_display(sys.stderr, json=as_json), tell)
    try:
        job = follower.run()
    finally:
        follower.close()
    return FAILED if job.exit_code is None else job.exit_code
