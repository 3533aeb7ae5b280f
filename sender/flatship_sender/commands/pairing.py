"""``identity`` and ``join``: who this sender is, and which receivers it knows."""

import asyncio
from pathlib import Path
from typing import Any, Final

import click

from flatship_protocol.invitation import decode_invitation
from flatship_sender.pairing import pair
from flatship_sender.receivers import Receivers, default_name
from flatship_service.cli import state_option
from flatship_service.keys import format_key, load_or_create_identity
from flatship_service.paths import state_folder

MAX_INVITATION: Final = 1 << 16  # bytes read of what should be one line


@click.command(short_help="Show this sender's key and fingerprint.")
@state_option
def identity(state: Path | None) -> None:
    """Show this sender's public key and fingerprint; make the key if there is none."""
    ours = load_or_create_identity(state_folder("sender", state))
    click.echo(f"{format_key(ours.public)} {ours.fingerprint}")


@click.command(short_help="Pair with a receiver.")
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
