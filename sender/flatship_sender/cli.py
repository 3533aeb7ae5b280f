"""The program flatship-sender: a command's module is imported when the command is asked for."""

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Final

import click

from flatship_protocol.errors import TransferError
from flatship_service import __version__
from flatship_service.cli import run
from flatship_service.completion import completion_command

# Command -> its module in flatship_sender.commands, and its name there.
PLACES: Final = {
    "identity": ("pairing", "identity"),
    "join": ("pairing", "join"),
    "inspect": ("inspecting", "inspect_"),
    "plan": ("plan", "plan"),
    "send": ("send", "send"),
    "serve": ("serving", "serve"),
    "submit": ("submit", "submit"),
    "jobs": ("jobs", "jobs"),
    "show": ("show", "show"),
    "pause": ("steering", "pause"),
    "resume": ("steering", "resume"),
    "cancel": ("steering", "cancel"),
    "drain": ("steering", "drain"),
    "config": ("configuration", "config"),
    "password": ("configuration", "password"),
}


class Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when somebody asks for it.

    What ``jobs`` needs is imported in a tenth of the time that ``send`` takes.
    """

    def __init__(self) -> None:
        self._imported: dict[str, click.Command | None] = dict.fromkeys(PLACES)

    def __getitem__(self, name: str) -> click.Command:
        command = self._imported[name]
        if command is None:
            module, attribute = PLACES[name]
            command = getattr(import_module(f"flatship_sender.commands.{module}"), attribute)
            self._imported[name] = command
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._imported[name] = command

    def __delitem__(self, name: str) -> None:
        del self._imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._imported)

    def __len__(self) -> int:
        return len(self._imported)


@click.group(commands=Commands())
@click.version_option(__version__, prog_name="flatship-sender")
def cli() -> None:
    """Send the disks of virtual machines to a Flatship receiver at a VMware datastore."""


cli.add_command(completion_command(cli, "flatship-sender"))


def main() -> None:
    """The program."""
    sys.exit(run(cli, (TransferError,)))
