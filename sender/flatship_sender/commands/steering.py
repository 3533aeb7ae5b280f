"""``pause``, ``resume``, ``cancel`` and ``drain``: what an operator has to say to the daemon."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from flatship_sender.commands.daemon_options import daemon_at, daemon_options
from flatship_sender.control.client import Daemon
from flatship_sender.control.faults import Refused
from flatship_service.cli import tell

MAX_ID: Final = (1 << 63) - 1
JOB_ID: Final = click.IntRange(1, MAX_ID)


class _Steered(msgspec.Struct):
    """What is said of a job, as it is now."""

    id: int
    state: str
    wanted: str | None = None

    def __str__(self) -> str:
        if self.wanted is None:
            return f"job {self.id} {self.state}"
        return f"job {self.id} is stopping, to be {self.wanted}"


class _Amount(msgspec.Struct):
    jobs: int


class _Status(msgspec.Struct):
    jobs: dict[str, _Amount]


@click.command(short_help="Keep jobs from running until they are resumed.")
@click.argument("numbers", metavar="ID...", nargs=-1, required=True, type=JOB_ID)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job.")
@daemon_options
def pause(numbers: tuple[int, ...], as_json: bool, state: Path | None, socket: Path | None) -> None:
    """Keep each job from running until it is resumed; one that runs stops."""
    _steer(daemon_at(state, socket), "pause", numbers, as_json=as_json)


@click.command(short_help="Let paused jobs run again.")
@click.argument("numbers", metavar="ID...", nargs=-1, required=True, type=JOB_ID)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job.")
@daemon_options
def resume(
    numbers: tuple[int, ...], as_json: bool, state: Path | None, socket: Path | None
) -> None:
    """Let each paused job run again; one that waits for its next try waits no longer."""
    _steer(daemon_at(state, socket), "resume", numbers, as_json=as_json)


@click.command(short_help="End jobs before they are done.")
@click.argument("numbers", metavar="ID...", nargs=-1, required=True, type=JOB_ID)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job.")
@daemon_options
def cancel(
    numbers: tuple[int, ...], as_json: bool, state: Path | None, socket: Path | None
) -> None:
    """End each job. What the receiver has of it stays there, and the same work goes on with it."""
    _steer(daemon_at(state, socket), "cancel", numbers, as_json=as_json)


@click.command(short_help="Let the daemon leave when running jobs have ended.")
@click.option("--json", "as_json", is_flag=True, help="The daemon's status as a JSON object.")
@daemon_options
def drain(as_json: bool, state: Path | None, socket: Path | None) -> None:
    """Have the daemon start no job, let running ones end, and leave. What is queued stays so."""
    answer = daemon_at(state, socket).ask("POST", "/v1/drain")
    if as_json:
        click.echo(answer)
        return
    running = msgspec.json.decode(answer, type=_Status).jobs.get("running", _Amount(0)).jobs
    left = "leaves now" if not running else f"leaves when the running jobs have ended: {running}"
    click.echo(f"the daemon starts no more jobs and {left}")


def _steer(daemon: Daemon, how: str, numbers: Sequence[int], *, as_json: bool) -> None:
    """Ask for each of the jobs; one that refuses keeps no other from it.

    Raises:
        Refused: The last of those that did.
    """
    refused: Refused | None = None
    for number in numbers:
        try:
            answer = daemon.ask("POST", f"/v1/jobs/{number}/{how}")
        except Refused as error:
            if refused is not None:
                tell(str(refused))
            refused = error
            continue
        click.echo(answer if as_json else str(msgspec.json.decode(answer, type=_Steered)))
    if refused is not None:
        raise refused
