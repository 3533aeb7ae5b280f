"""``send``: disks from here to a receiver, by this process or by the daemon that runs here."""

import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Unpack

import click
import msgspec

from flatship_protocol.endpoint import Endpoint
from flatship_sender.commands.daemon_options import daemon_at, socket_option
from flatship_sender.commands.options import (
    ADDRESS,
    check_work,
    settle,
    spec_of,
    work_options,
)
from flatship_sender.commands.sources import Selection, sources_options
from flatship_sender.control.answers import Status
from flatship_sender.control.client import Daemon
from flatship_sender.control.faults import Refused
from flatship_sender.control.following import Follower
from flatship_sender.display import Display, choose_display
from flatship_sender.order import Order, Source, Work, options_of, target_of
from flatship_sender.queue.model import Job, JobSpec, JobState, Submission
from flatship_sender.receivers import Receivers
from flatship_sender.results import SendResult, from_progress, render_table, to_json
from flatship_service import __version__
from flatship_service.cli import FAILED, INTERRUPTED, config_option, state_option, tell
from flatship_service.errors import OperatorError
from flatship_service.keys import load_or_create_identity
from flatship_service.paths import state_folder

DRY_RUN_NOTE: Final = "dry run: the receiver would take this; nothing was sent"
LIVE_NOTE: Final = (
    "not published: a source that is in use makes no disk to boot from;"
    " shut the guest down and send it again without --live: then only what changed is sent"
)


class JobFailed(OperatorError):
    """A job of the daemon did not end well.

    Args:
        message: Why, and what to do.
        exit_code: What its worker ended with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self._exit_code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # as the worker said, not the class
        """What the command ends with."""
        return self._exit_code


@click.command(short_help="Send disks, prove them, publish them.")
@sources_options
@work_options
@click.option("--dry-run", is_flag=True, help="Ask the receiver whether it would take the disks.")
@click.option("--http", type=ADDRESS, help="Serve metrics here while it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--alone", is_flag=True, help="Do not have the daemon do it, even if one runs.")
@config_option
@state_option
@socket_option
def send(
    selection: Selection,
    dry_run: bool,
    http: Endpoint | None,
    as_json: bool,
    quiet: bool,
    alone: bool,
    config: Path | None,
    state: Path | None,
    socket: Path | None,
    **work: Unpack[Work],
) -> int:
    """Send each SOURCE, a raw disk or a disk image; publish it as a VMDK once it is proven."""
    check_work(work)
    choice = selection.choose(may_run=work["live"])
    work = settle(work, choice)
    display = choose_display(sys.stderr, json=as_json, quiet=quiet)
    own = alone or dry_run or http is not None or config is not None
    if not own and (spec := _job(choice.sources, work)) is not None:
        daemon = daemon_at(state, socket)
        if _takes_work(daemon):
            return _through(daemon, spec, display, as_json=as_json)
    from flatship_sender.daemon import send as send_disks  # noqa: PLC0415  # the daemon's work

    folder = state_folder("sender", state)
    order = Order(
        choice.sources,
        Receivers(folder).load(work["receiver"]),
        load_or_create_identity(folder),
        folder,
        target_of(work),
        options_of(work, dry_run=dry_run, http=http),
        _command_line(),
        config,
    )
    outcome = send_disks(order, display, __version__)
    _print(from_progress(outcome.progress), as_json=as_json)
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.exit_code == 0 and (dry_run or work["live"]):
        tell(DRY_RUN_NOTE if dry_run else LIVE_NOTE)
    if outcome.exit_code == INTERRUPTED:
        tell(f"to go on where it stopped, run: {order.command}")
    return outcome.exit_code


def _job(sources: tuple[Source, ...], work: Work) -> JobSpec | None:
    """The work as a job; None if it can be none: then this process says what is wrong with it."""
    try:
        return spec_of(sources, work)
    except ValueError:
        return None


def _takes_work(daemon: Daemon) -> bool:
    """Whether a daemon is there that starts jobs."""
    if not daemon.answers:
        return False
    status = msgspec.json.decode(daemon.ask("GET", "/v1/status"), type=Status)
    if status.draining:
        tell("the daemon is about to leave; this command does the work itself")
    return not status.draining


def _through(daemon: Daemon, spec: JobSpec, display: Display, *, as_json: bool) -> int:
    """Have the daemon do it, and show it as if it were done here."""
    answer = daemon.ask("POST", "/v1/jobs", msgspec.json.encode(Submission(spec=spec)))
    number = msgspec.json.decode(answer, type=Job).id
    follower = Follower(daemon, number, display, tell)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        job = follower.run()
    except KeyboardInterrupt:
        follower.close()
        job = _cancelled(daemon, number, follower)
    finally:
        follower.close()
    if job.result is not None:
        _print(job.result, as_json=as_json)
    if job.state is JobState.CANCELLED:
        tell(f"to go on where it stopped, run: {_command_line()}")
        return INTERRUPTED
    if job.exit_code == 0 and spec.live:
        tell(LIVE_NOTE)
    if job.exit_code and job.message and not _said(job):
        raise JobFailed(job.message, job.exit_code)
    return FAILED if job.exit_code is None else job.exit_code


def _cancelled(daemon: Daemon, number: int, follower: Follower) -> Job:
    """Have the job end, and wait for that; a second interruption does not wait."""
    with suppress(Refused):  # it has ended meanwhile, and says how
        daemon.ask("POST", f"/v1/jobs/{number}/cancel")
    return follower.run()


def _said(job: Job) -> bool:
    """Whether the result says already why the job failed."""
    return job.result is not None and any(
        disk.error is not None and disk.error.message == job.message for disk in job.result.disks
    )


def _print(result: SendResult, *, as_json: bool) -> None:
    click.echo(to_json(result) if as_json else render_table(result), nl=not as_json)


def _command_line() -> str:
    """This process's command line, for a shell."""
    as_module = Path(sys.argv[0]).name == "__main__.py"
    return shlex.join(sys.orig_argv if as_module else sys.argv)
