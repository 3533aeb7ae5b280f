"""``submit``: work for the daemon."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Unpack

import click
import msgspec

from flatship_sender.commands.daemon_options import daemon_at, daemon_options
from flatship_sender.commands.moment import parse_moment
from flatship_sender.commands.options import (
    check_work,
    settle,
    spec_of,
    work_options,
)
from flatship_sender.commands.sources import Selection, sources_options
from flatship_sender.order import Work
from flatship_sender.queue.model import MAX_KEY, MAX_PRIORITY, Job, Submission
from flatship_service.cli import Parsed

MOMENT: Final = Parsed("time", lambda text: parse_moment(text, datetime.now(UTC).astimezone()))


class _Submitted(msgspec.Struct):
    job: msgspec.Raw
    schema_version: int = 1


@click.command(short_help="Give the daemon disks to send.")
@sources_options
@work_options
@click.option(
    "--priority",
    metavar="N",
    type=click.IntRange(-MAX_PRIORITY, MAX_PRIORITY),
    default=0,
    show_default=True,
    help=f"Jobs of higher priority start first; {-MAX_PRIORITY} to {MAX_PRIORITY}.",
)
@click.option(
    "--not-before",
    type=MOMENT,
    help="Do not start sooner: 22:30, 2026-01-31T22:30, or 2h from now.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="A name of your own for the job: submitted again with the same one it is the same job.",
)
@click.option("--json", "as_json", is_flag=True, help="The job as a JSON object.")
@daemon_options
def submit(
    selection: Selection,
    priority: int,
    not_before: float | None,
    key: str | None,
    as_json: bool,
    state: Path | None,
    socket: Path | None,
    **work: Unpack[Work],
) -> None:
    """Have the daemon send each SOURCE, when its turn comes, as send would; return at once."""
    check_work(work)
    if key is not None and not 1 <= len(key) <= MAX_KEY:
        raise click.UsageError(f"a key has 1 to {MAX_KEY} characters, this one has {len(key)}")
    # What is for later is not looked at now: whether the domain is shut off shows when it starts.
    choice = selection.choose(may_run=work["live"] or not_before is not None)
    try:
        submission = Submission(
            spec=spec_of(choice.sources, settle(work, choice)),
            priority=priority,
            not_before=not_before,
            key=key,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    answer = daemon_at(state, socket).ask("POST", "/v1/jobs", msgspec.json.encode(submission))
    if as_json:
        click.echo(msgspec.json.encode(_Submitted(msgspec.Raw(answer))))
        return
    job = msgspec.json.decode(answer, type=Job)
    click.echo(f"job {job.id} {job.state.value}")
