"""Which disks a command is about: those that it names, or those of a domain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from typing import Any, Final, TypeVar

import click

from flatship_protocol.names import name_problem
from flatship_sender.order import Source
from flatship_sender.sources.containers import READABLE, ImageFormat
from flatship_sender.sources.lvm.names import expand
from flatship_service.cli import tell

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ADAPTER: Final = "lsilogic"


@dataclass(frozen=True, slots=True)
class Choice:
    """The disks; ``domain`` is whose they are, None if somebody named them."""

    sources: tuple[Source, ...]
    domain: str | None = None
    adapter: str = DEFAULT_ADAPTER  # which suits them

    def machine(self, given: str, otherwise: str = "") -> str:
        """The virtual machine's name at the receiver.

        Args:
            given: What the command says; empty for nothing.
            otherwise: For want of a domain; empty if there must be a name.

        Raises:
            click.UsageError: There is none, or a domain's name cannot be one.
        """
        if given:
            return given
        if self.domain is None:
            if not otherwise:
                raise click.UsageError(
                    "name the virtual machine with --vm; an empty name is refused"
                )
            return otherwise
        if problem := name_problem(self.domain):
            raise click.UsageError(
                f"domain {self.domain} cannot be called that at the receiver, for a VM's name"
                f" that {problem} is refused; choose another with --vm"
            )
        return self.domain


@dataclass(frozen=True, slots=True)
class Selection:
    """What the options say about disks. ``format`` is None where it is to be recognised."""

    sources: tuple[str, ...]
    format: ImageFormat | None
    domain: str | None
    connect: str | None

    def names(self) -> tuple[str, ...]:
        """The words in the place of ``SOURCE...``, which may be none.

        Raises:
            click.UsageError: A domain is named.
        """
        if self.domain is not None:
            raise click.UsageError("a wave is of machines, named NAME=SIZE, and not of a --domain")
        return self.sources

    def choose(self, *, may_run: bool) -> Choice:
        """Find the disks; of a domain it is said on standard error what they are.

        Args:
            may_run: A domain may be running.

        Raises:
            click.UsageError: The options do not fit together.
            SourceError: The domain cannot be sent as it is, or libvirt cannot be asked.
        """
        if self.domain is None:
            if self.connect is not None:
                raise click.UsageError("--connect says where a --domain is; name one")
            if not self.sources:
                raise click.UsageError("name a SOURCE, or a domain with --domain")
            return Choice(tuple(Source(path, self.format) for path in self.sources))
        if self.sources:
            raise click.UsageError("name SOURCEs, or a --domain for all of its disks, not both")
        if self.format is not None:
            raise click.UsageError(
                "the --domain says what its disks are; leave --source-format out"
            )
        from flatship_sender.domains.resolve import (  # noqa: PLC0415  # few name one
            check_here,
            resolve,
        )
        from flatship_sender.domains.virsh import Virsh  # noqa: PLC0415

        check_here(self.connect or "")  # before virsh calls there, by ssh, for one
        found = resolve(self.domain, Virsh(self.connect), may_run=may_run)
        tell(found.words)
        return Choice(found.sources, found.name, found.adapter)


def _expand(
    _context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(expand(value))


def _format(_context: click.Context, _parameter: click.Parameter, value: str) -> ImageFormat | None:
    return None if value == "auto" else ImageFormat(value)


_OPTIONS: Final = (
    click.argument("sources", metavar="SOURCE...", nargs=-1, callback=_expand),
    click.option(
        "--source-format",
        type=click.Choice(["auto", *(each.value for each in READABLE)]),
        default="auto",
        show_default=True,
        callback=_format,
        help="What each SOURCE is: a raw disk, or a disk image; auto recognises it.",
    ),
    click.option(
        "--domain",
        metavar="NAME",
        help="In the place of SOURCEs: all disks of this libvirt domain, as it says.",
    ),
    click.option("--connect", metavar="URI", help="Which libvirt has it; as for virsh if absent."),
)


def sources_options(command: F) -> F:
    """Add ``SOURCE...`` and its options; the command is given them as ``selection``.

    A source is a path, or the name of an LVM volume, in whose place its path is put.
    """

    @wraps(command)
    def with_selection(
        *,
        sources: tuple[str, ...],
        source_format: ImageFormat | None,
        domain: str | None,
        connect: str | None,
        **others: Any,
    ) -> Any:
        selection = Selection(sources, source_format, domain, connect)
        return command(selection=selection, **others)

    return reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), with_selection)  # type: ignore[return-value]  # of its kind, for click
