"""The commands of flatship-sender."""

import asyncio
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.errors import TransferError
from flatship_protocol.invitation import decode_invitation
from flatship_sender.compression import MAX_LEVEL, MIN_LEVEL, Policy
from flatship_sender.config import DEFAULT_JOBS, MAX_JOBS, MIN_LIMIT, TOO_LOW, configure, read
from flatship_sender.daemon import send as send_disks
from flatship_sender.display import choose_display
from flatship_sender.inspect import InspectionReport, describe, inspect
from flatship_sender.order import (
    ADAPTERS,
    DEFAULT_CONNECTIONS,
    FORMATS,
    HARDWARE_VERSIONS,
    MAX_CONNECTIONS,
    PROVISIONINGS,
    Order,
    SendOptions,
    Target,
)
from flatship_sender.page_indexes import DEFAULT_LIMIT
from flatship_sender.pairing import pair
from flatship_sender.persistence import DEFAULT_PATIENCE
from flatship_sender.receivers import Receivers, default_name
from flatship_sender.results import from_progress, render_table, to_json
from flatship_sender.sharing import Precedence
from flatship_sender.sources.raw import open_source
from flatship_service import __version__
from flatship_service.cli import (
    CONGESTION_CONTROL,
    DURATION,
    INTERRUPTED,
    SIZE,
    Parsed,
    config_option,
    run,
    state_option,
    tell,
)
from flatship_service.completion import completion_command
from flatship_service.config_command import config_command
from flatship_service.errors import ConfigError
from flatship_service.keys import format_key, load_or_create_identity
from flatship_service.password_command import password_command
from flatship_service.paths import state_folder
from flatship_service.units import DURATION_EXPECTED, parse_duration, parse_rate

BAD_CONFIGURATION: Final = 78  # RestartPreventExitStatus of the unit
MAX_INVITATION: Final = 1 << 16  # bytes read of what should be one line
DRY_RUN_NOTE: Final = "dry run: the receiver would take this; nothing was sent"
LIVE_NOTE: Final = (
    "not published: a source that is in use makes no disk to boot from;"
    " shut the guest down and send it again without --live: then only what changed is sent"
)


def _compression(text: str) -> Policy:
    if text in ("auto", "off"):
        return "auto" if text == "auto" else "off"
    try:
        level = int(text)
    except ValueError:
        level = MAX_LEVEL + 1
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise ValueError(f"expected auto, off, or a level from {MIN_LEVEL} to {MAX_LEVEL}")
    return level


def _limit(text: str) -> int:
    rate = parse_rate(text)
    if rate < MIN_LIMIT:
        raise ValueError(TOO_LOW)
    return rate


def _downtime(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError(f"expected {DURATION_EXPECTED}; no pass takes no time at all")
    return seconds


DOWNTIME: Final = Parsed("duration", _downtime)
LIMIT: Final = Parsed("rate", _limit)
COMPRESSION: Final = Parsed("auto|off|level", _compression)
ADDRESS: Final = Parsed("host:port", parse_endpoint)


@click.group()
@click.version_option(__version__, prog_name="flatship-sender")
def cli() -> None:
    """Send the disks of virtual machines to a Flatship receiver at a VMware datastore."""


@cli.command(short_help="Show this sender's key and fingerprint.")
@state_option
def identity(state: Path | None) -> None:
    """Show this sender's public key and fingerprint; make the key if there is none."""
    ours = load_or_create_identity(state_folder("sender", state))
    click.echo(f"{format_key(ours.public)} {ours.fingerprint}")


@cli.command(short_help="Pair with a receiver.")
@click.option("--as", "name", metavar="NAME", help="Call the receiver NAME; its host otherwise.")
@click.argument("invitation", metavar="[FILE]", type=click.File("rb"), default="-")
@state_option
def join(name: str | None, invitation: Any, state: Path | None) -> None:
    """Pair with a receiver: read the line that flatship-receiver invite printed.

    FILE holds that line; without it, or with -, standard input is read. The line itself
    is never an argument, for it holds a secret and arguments are visible to all.
    """
    folder = state_folder("sender", state)
    offered = decode_invitation(invitation.read(MAX_INVITATION).decode(errors="replace"))
    receiver = asyncio.run(
        pair(
            offered,
            name or default_name(offered.endpoint),
            load_or_create_identity(folder),
            Receivers(folder),
        )
    )
    click.echo(f"paired with {receiver}, key {receiver.fingerprint}")


@cli.command(name="inspect", short_help="Show what disks hold, without sending them.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--exact", is_flag=True, help="Read everything instead of a sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a source.")
def inspect_(sources: tuple[str, ...], exact: bool, as_json: bool) -> None:
    """Show what each SOURCE holds and what sending it would take, without sending it."""
    for path in sources:
        with closing(open_source(path, live=True)) as source:
            found = inspect(source, exact=exact)
        if as_json:
            click.echo(msgspec.json.encode(InspectionReport.of(path, found)))
        else:
            click.echo(describe(path, found))


@cli.command(short_help="Send disks, prove them, publish them.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--to", "receiver", metavar="NAME", required=True, help="The receiver, by its name.")
@click.option("--vm", metavar="VM", required=True, help="The virtual machine's name there.")
@click.option("--datastore", metavar="D", default="", help="Which datastore; its first if absent.")
@click.option(
    "--provisioning",
    type=click.Choice(list(PROVISIONINGS)),
    default="thin",
    show_default=True,
    help="How space is taken: as data comes, all at once, or all of it written.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(FORMATS)),
    default="vmfs",
    show_default=True,
    help="vmfs is for ESXi, the others for Workstation and Fusion.",
)
@click.option(
    "--adapter",
    type=click.Choice(list(ADAPTERS)),
    default="lsilogic",
    show_default=True,
    help="lsilogic stands for PVSCSI, SAS, SATA and NVMe too; choose those in the VM's settings.",
)
@click.option(
    "--hardware-version",
    type=click.Choice([str(version) for version in HARDWARE_VERSIONS]),
    default="14",
    show_default=True,
    help="Virtual hardware: 14 is ESXi 6.7, 17 is 7.0, 20 is 8.0.",
)
@click.option("--replace", is_flag=True, help="Replace a disk that is there, once proven.")
@click.option("--live", is_flag=True, help="Read a source that is in use; it is not published.")
@click.option(
    "--until-downtime",
    type=DOWNTIME,
    help="With --live: repeat passes until the final one is expected to take no longer.",
)
@click.option("--dry-run", is_flag=True, help="Ask the receiver whether it would take the disks.")
@click.option(
    "--order",
    type=click.Choice([each.value for each in Precedence]),
    default=Precedence.FAIR.value,
    show_default=True,
    help="How disks share the link: all alike, or earlier SOURCEs before later ones.",
)
@click.option("--limit", type=LIMIT, help="Bytes a second on the wire, such as 20MB or 100Mbit.")
@click.option("--disk-limit", type=LIMIT, help="Likewise, for each SOURCE.")
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, MAX_CONNECTIONS),
    default=DEFAULT_CONNECTIONS,
    show_default=True,
    help="TCP connections that share the work.",
)
@click.option(
    "--compression",
    type=COMPRESSION,
    default="auto",
    show_default=True,
    help=f"auto follows the link; or a zstd level, {MIN_LEVEL} to {MAX_LEVEL}.",
)
@click.option(
    "--patience",
    type=DURATION,
    default=DEFAULT_PATIENCE,
    help="How long to wait for a receiver that was lost; 0 for not at all.  [default: 1d]",
)
@click.option(
    "--index-limit",
    type=SIZE,
    default=DEFAULT_LIMIT,
    help="Room in the state folder for what is known of pages that were sent, so that they are"
    " not sent again; 0 for none.  [default: 4GiB]",
)
@click.option(
    "--congestion-control",
    type=CONGESTION_CONTROL,
    help="TCP's, such as bbr; the system's otherwise.",
)
@click.option("--http", type=ADDRESS, help="Serve metrics here while it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@config_option
@state_option
def send(
    sources: tuple[str, ...],
    receiver: str,
    vm: str,
    datastore: str,
    provisioning: str,
    format_: str,
    adapter: str,
    hardware_version: str,
    replace: bool,
    live: bool,
    until_downtime: float | None,
    dry_run: bool,
    order: str,
    limit: int | None,
    disk_limit: int | None,
    connections: int,
    compression: Policy,
    patience: float,
    index_limit: int,
    congestion_control: str | None,
    http: Endpoint | None,
    as_json: bool,
    quiet: bool,
    config: Path | None,
    state: Path | None,
) -> int:
    """Send each SOURCE, a raw file or a block device; publish it as a VMDK once it is proven."""
    if until_downtime is not None and not live:
        raise click.UsageError(
            "--until-downtime repeats passes over a source that is in use, so it needs --live"
        )
    folder = state_folder("sender", state)
    work = Order(
        sources,
        Receivers(folder).load(receiver),
        load_or_create_identity(folder),
        folder,
        Target(
            vm,
            datastore,
            FORMATS[format_],
            PROVISIONINGS[provisioning],
            ADAPTERS[adapter],
            int(hardware_version),
            replace,
        ),
        SendOptions(
            connections,
            compression,
            limit,
            live,
            dry_run,
            http,
            patience=patience,
            index_limit=index_limit,
            disk_limit=disk_limit,
            until_downtime=until_downtime,
            congestion_control=congestion_control,
            precedence=Precedence(order),
        ),
        _command_line(),
        config,
    )
    display = choose_display(sys.stderr, json=as_json, quiet=quiet)
    outcome = send_disks(work, display, __version__)
    result = from_progress(outcome.progress)
    click.echo(to_json(result) if as_json else render_table(result), nl=not as_json)
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.exit_code == 0 and (dry_run or live):
        tell(DRY_RUN_NOTE if dry_run else LIVE_NOTE)
    if outcome.exit_code == INTERRUPTED:
        tell(f"to go on where it stopped, run: {work.command}")
    return outcome.exit_code


@cli.command(short_help="Send what is in the queue, until SIGTERM.")
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
def serve(
    http: Endpoint | None,
    jobs: int | None,
    log_format: str,
    config: Path | None,
    state: Path | None,
) -> int:
    """Be the daemon of a state folder: send the jobs of its queue until SIGTERM."""
    from flatship_sender.serve import Settings  # noqa: PLC0415  # no other command waits for it
    from flatship_sender.serve import serve as serve_until_stopped  # noqa: PLC0415
    from flatship_service import logs  # noqa: PLC0415

    logs.configure(as_json=log_format == "json")
    try:
        said = configure(config)
        settings = Settings(
            state_folder("sender", state).absolute(),
            None if config is None else config.absolute(),
            http or said.http,
            jobs or said.jobs,
        )
        asyncio.run(serve_until_stopped(settings, __version__))
    except ConfigError as error:
        tell(f"error: {error}")
        return BAD_CONFIGURATION
    return 0


def _command_line() -> str:
    """This process's command line, for a shell."""
    as_module = Path(sys.argv[0]).name == "__main__.py"
    return shlex.join(sys.orig_argv if as_module else sys.argv)


cli.add_command(config_command(read))
cli.add_command(password_command)
cli.add_command(completion_command(cli, "flatship-sender"))


def main() -> None:
    """The program."""
    sys.exit(run(cli, (TransferError,)))
