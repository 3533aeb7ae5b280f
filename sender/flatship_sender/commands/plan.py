"""The command ``plan``: what a transfer, or a whole wave of them, will take."""

from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from flatship_protocol.messages import DiskFormat
from flatship_sender.commands.options import COMPRESSION, LIMIT
from flatship_sender.commands.sources import Selection, sources_options
from flatship_sender.compression import MAX_LEVEL, MIN_LEVEL, Policy
from flatship_sender.order import (
    ADAPTERS,
    DEFAULT_CONNECTIONS,
    MAX_CONNECTIONS,
    PROVISIONINGS,
    Order,
    SendOptions,
    Target,
    distinct,
)
from flatship_sender.receivers import Receivers
from flatship_sender.sources.opening import open_source
from flatship_service.cli import config_option, state_option
from flatship_service.keys import load_or_create_identity
from flatship_service.paths import state_folder

UNNAMED = "flatship-plan"  # the VM that the receiver is asked about if none is named
HARDWARE_VERSION = 14


@click.command(short_help="Foresee what sending disks will take.")
@sources_options
@click.option("--to", "receiver", metavar="NAME", required=True, help="The receiver, by its name.")
@click.option("--vm", metavar="VM", default="", help="The virtual machine's name there.")
@click.option("--datastore", metavar="D", default="", help="Which datastore; its first if absent.")
@click.option(
    "--provisioning",
    type=click.Choice(list(PROVISIONINGS)),
    default="thin",
    show_default=True,
    help="How space would be taken there.",
)
@click.option("--limit", type=LIMIT, help="As it will be for send; the measurement keeps to it.")
@click.option("--rate", type=LIMIT, help="The link's rate, instead of measuring it.")
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, MAX_CONNECTIONS),
    default=DEFAULT_CONNECTIONS,
    show_default=True,
    help="TCP connections that will share the work.",
)
@click.option(
    "--compression",
    type=COMPRESSION,
    default="auto",
    show_default=True,
    help=f"auto follows the link; or a zstd level, {MIN_LEVEL} to {MAX_LEVEL}.",
)
@click.option(
    "--from",
    "prometheus",
    metavar="URL",
    help="Plan a wave from what this Prometheus has recorded; a SOURCE is then NAME=SIZE or"
    " NAME=SIZE@DATASTORE.",
)
@click.option(
    "--wave",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --from: more of them, one a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")
@config_option
@state_option
def plan(
    selection: Selection,
    receiver: str,
    vm: str,
    datastore: str,
    provisioning: str,
    limit: int | None,
    rate: int | None,
    connections: int,
    compression: Policy,
    prometheus: str | None,
    wave: Path | None,
    as_json: bool,
    config: Path | None,
    state: Path | None,
) -> None:
    """Foresee bytes, time and downtime of sending each SOURCE, without sending it.

    It samples the sources, measures the link for a few seconds, and asks the receiver for space.
    """
    if prometheus is not None:
        from flatship_sender.forecast.fleet_command import plan_wave  # noqa: PLC0415  # fewer still

        of_wave = plan_wave(prometheus, selection.names(), wave, receiver, limit, config)
        click.echo(msgspec.json.encode(of_wave.report) if as_json else of_wave.words)
        return
    if wave is not None:
        raise click.UsageError("--wave is planned from what Prometheus has recorded: add --from")
    choice = selection.choose(may_run=True)
    from flatship_sender.forecast.command import make_plan  # noqa: PLC0415  # few plan
    from flatship_sender.forecast.words import describe  # noqa: PLC0415

    folder = state_folder("sender", state)
    order = Order(
        choice.sources,
        Receivers(folder).load(receiver),
        load_or_create_identity(folder),
        folder,
        Target(
            choice.machine(vm, UNNAMED),
            datastore,
            DiskFormat.VMFS,
            PROVISIONINGS[provisioning],
            ADAPTERS[choice.adapter],
            HARDWARE_VERSION,
            replace=False,
        ),
        SendOptions(connections, compression, limit, live=True, dry_run=True, http=None),
        config=config,
    )
    with ExitStack() as cleanup:
        opened = []
        for source in distinct(choice.sources):
            opened.append(open_source(source.path, live=True, source_format=source.format))
            cleanup.callback(opened[-1].close)
        answer = make_plan(order, opened, rate)
    click.echo(msgspec.json.encode(answer) if as_json else describe(answer))
