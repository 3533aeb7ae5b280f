"""The options that say what is sent and how: the same ones for ``send`` and ``submit``."""

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from flatship_protocol.endpoint import parse_endpoint
from flatship_sender.commands.sources import Choice
from flatship_sender.compression import MAX_LEVEL, MIN_LEVEL, Policy
from flatship_sender.config import MIN_LIMIT, TOO_LOW
from flatship_sender.order import (
    ADAPTERS,
    DEFAULT_CONNECTIONS,
    FORMATS,
    HARDWARE_VERSIONS,
    MAX_CONNECTIONS,
    PROVISIONINGS,
    Source,
    Work,
)
from flatship_sender.page_indexes import DEFAULT_LIMIT
from flatship_sender.persistence import DEFAULT_PATIENCE
from flatship_sender.queue.model import JobSpec
from flatship_sender.sharing import Precedence
from flatship_service.cli import CONGESTION_CONTROL, DURATION, SIZE, Parsed
from flatship_service.units import DURATION_EXPECTED, parse_duration, parse_rate

F = TypeVar("F", bound=Callable[..., Any])


def check_work(work: Work) -> None:
    """Refuse options that do not fit together.

    Raises:
        click.UsageError: Some do not.
    """
    if work["until_downtime"] is not None and not work["live"]:
        raise click.UsageError(
            "--until-downtime repeats passes over a source that is in use, so it needs --live"
        )
    if work["snapshot"] and not work["live"]:
        raise click.UsageError("--snapshot is for a volume that is in use, so it needs --live")
    if work["snapshot_size"] is not None and not work["snapshot"]:
        raise click.UsageError("--snapshot-size says how large a snapshot is: add --snapshot")


def settle(work: Work, choice: Choice) -> Work:
    """Put what was chosen in the place of what was left open.

    Raises:
        click.UsageError: The machine has no name.
    """
    adapter = work["adapter"] or choice.adapter
    return {**work, "vm": choice.machine(work["vm"]), "adapter": adapter}


def spec_of(sources: Sequence[Source], work: Work) -> JobSpec:
    """What the daemon, which has a working directory of its own, is to be asked for.

    Raises:
        ValueError: The daemon would refuse it.
    """
    formats = [source.format for source in sources]
    return JobSpec(
        sources=[_absolute(source.path) for source in sources],
        source_format=formats[0] if len(set(formats)) == 1 else formats,
        **work,  # type: ignore[arg-type]  # of options that allow nothing else
    )


def _absolute(source: str) -> str:
    """A path from the root. A link's own name stays: that of a device says more than its number."""
    path = Path(source)
    return source if path.is_absolute() else str(path.parent.resolve() / path.name)


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


def _number(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    return int(value)


def _precedence(_context: click.Context, _parameter: click.Parameter, value: str) -> Precedence:
    return Precedence(value)


def _given(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    return value or ""


ADDRESS: Final = Parsed("host:port", parse_endpoint)
_DOWNTIME: Final = Parsed("duration", _downtime)
LIMIT: Final = Parsed("rate", _limit)
COMPRESSION: Final = Parsed("auto|off|level", _compression)

_OPTIONS: Final = (
    click.option(
        "--to", "receiver", metavar="NAME", required=True, help="The receiver, by its name."
    ),
    click.option(
        "--vm",
        metavar="VM",
        callback=_given,
        help="The virtual machine's name there; that of the --domain if absent.",
    ),
    click.option(
        "--datastore", metavar="D", default="", help="Which datastore; its first if absent."
    ),
    click.option(
        "--provisioning",
        type=click.Choice(list(PROVISIONINGS)),
        default="thin",
        show_default=True,
        help="How space is taken: as data comes, all at once, or all of it written.",
    ),
    click.option(
        "--format",
        type=click.Choice(list(FORMATS)),
        default="vmfs",
        show_default=True,
        help="vmfs is for ESXi, the others for Workstation and Fusion.",
    ),
    click.option(
        "--adapter",
        type=click.Choice(list(ADAPTERS)),
        callback=_given,
        help="lsilogic stands for PVSCSI, SAS, SATA and NVMe too; choose those in the VM's"
        " settings.  [default: lsilogic; ide for a --domain with nothing but IDE disks]",
    ),
    click.option(
        "--hardware-version",
        type=click.Choice([str(version) for version in HARDWARE_VERSIONS]),
        default="14",
        show_default=True,
        callback=_number,
        help="Virtual hardware: 14 is ESXi 6.7, 17 is 7.0, 20 is 8.0.",
    ),
    click.option("--replace", is_flag=True, help="Replace a disk that is there, once proven."),
    click.option("--live", is_flag=True, help="Read a source that is in use; it is not published."),
    click.option(
        "--snapshot",
        is_flag=True,
        help="With --live: read LVM volumes as they are at one moment, by way of a snapshot.",
    ),
    click.option(
        "--snapshot-size",
        type=SIZE,
        help="Room for what a guest writes to a thick volume meanwhile, in its volume group."
        "  [default: a fifth of the volume]",
    ),
    click.option(
        "--until-downtime",
        type=_DOWNTIME,
        help="With --live: repeat passes until the final one is expected to take no longer.",
    ),
    click.option(
        "--order",
        type=click.Choice([each.value for each in Precedence]),
        default=Precedence.FAIR.value,
        show_default=True,
        callback=_precedence,
        help="How disks share the link: all alike, or earlier SOURCEs before later ones.",
    ),
    click.option(
        "--limit", type=LIMIT, help="Bytes a second on the wire, such as 20MB or 100Mbit."
    ),
    click.option("--disk-limit", type=LIMIT, help="Likewise, for each SOURCE."),
    click.option(
        "--connections",
        metavar="N",
        type=click.IntRange(1, MAX_CONNECTIONS),
        default=DEFAULT_CONNECTIONS,
        show_default=True,
        help="TCP connections that share the work.",
    ),
    click.option(
        "--compression",
        type=COMPRESSION,
        default="auto",
        show_default=True,
        help=f"auto follows the link; or a zstd level, {MIN_LEVEL} to {MAX_LEVEL}.",
    ),
    click.option(
        "--patience",
        type=DURATION,
        default=DEFAULT_PATIENCE,
        help="How long to wait for a receiver that was lost; 0 for not at all.  [default: 1d]",
    ),
    click.option(
        "--index-limit",
        type=SIZE,
        default=DEFAULT_LIMIT,
        help="Room in the state folder for what is known of pages that were sent, so that they"
        " are not sent again; 0 for none.  [default: 4GiB]",
    ),
    click.option(
        "--congestion-control",
        type=CONGESTION_CONTROL,
        help="TCP's, such as bbr; the system's otherwise.",
    ),
)


def work_options(command: F) -> F:
    """Add all of them."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), command)
