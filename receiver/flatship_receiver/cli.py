"""The commands of flatship-receiver."""

import secrets
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import click
import msgspec

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.errors import TransferError
from flatship_protocol.invitation import Invitation, encode_invitation
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.config import Config, configure, read
from flatship_receiver.discard import discard, forget
from flatship_receiver.images import describe, image_line
from flatship_receiver.invitations import LIFETIME, Invitations
from flatship_receiver.journal import ImageState, Journal, JournalMissing
from flatship_receiver.peers import Peer
from flatship_receiver.verify import Verdict, verify
from flatship_service import __version__, logs
from flatship_service.cli import (
    CONGESTION_CONTROL,
    DURATION,
    Parsed,
    config_option,
    run,
    state_option,
)
from flatship_service.completion import completion_command
from flatship_service.config_command import config_command
from flatship_service.errors import ConfigError
from flatship_service.keys import format_key, load_or_create_identity
from flatship_service.password_command import password_command
from flatship_service.paths import state_folder
from flatship_service.printable import printable
from flatship_service.units import format_duration, format_size

ANY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound to
BAD_CONFIGURATION: Final = 78  # sysexits.h, EX_CONFIG: systemd is told not to try again


def _datastore(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"expected NAME=PATH, got {text!r}")
    return name, Path(path)


ADDRESS: Final = Parsed("host:port", parse_endpoint)
DATASTORE: Final = Parsed("name=path", _datastore)


@click.group()
@click.version_option(__version__, prog_name="flatship-receiver")
def cli() -> None:
    """Receive the disks of virtual machines at a VMware datastore."""


@cli.command()
@click.option("--listen", type=ADDRESS, help="Where senders connect.  [default: 0.0.0.0:7071]")
@click.option(
    "--datastore",
    "datastores",
    type=DATASTORE,
    multiple=True,
    help="A datastore's name and where it is mounted; the first one is the default.",
)
@click.option(
    "--congestion-control",
    type=CONGESTION_CONTROL,
    help="TCP's, such as bbr; the system's otherwise.",
)
@click.option("--http", type=ADDRESS, help="Where metrics are served.  [default: 127.0.0.1:9471]")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines are written, on standard error.",
)
@click.option("--benchmark-no-proof", is_flag=True, hidden=True)
@config_option
@state_option
def serve(
    listen: Endpoint | None,
    datastores: tuple[tuple[str, Path], ...],
    congestion_control: str | None,
    http: Endpoint | None,
    log_format: str,
    benchmark_no_proof: bool,
    config: Path | None,
    state: Path | None,
) -> int:
    """Receive disks until SIGTERM."""
    import uvloop  # noqa: PLC0415  # no other command waits for it

    from flatship_receiver.daemon import serve as serve_until_stopped  # noqa: PLC0415

    def read_again() -> Config:
        return configure(
            config=config,
            state=state,
            listen=listen,
            http=http,
            datastores=datastores,
            prove=not benchmark_no_proof,
            congestion_control=congestion_control,
        )

    try:
        settings = read_again()
        logs.configure(settings.log_level, as_json=log_format == "json")
        uvloop.run(serve_until_stopped(settings, __version__, read_again))
    except ConfigError as error:
        click.echo(f"error: {printable(str(error))}", err=True)
        return BAD_CONFIGURATION
    return 0


@cli.command(short_help="Show this receiver's key and fingerprint.")
@state_option
def identity(state: Path | None) -> None:
    """Show this receiver's public key and fingerprint; make the key if there is none."""
    ours = load_or_create_identity(state_folder("receiver", state))
    click.echo(f"{format_key(ours.public)} {ours.fingerprint}")


@cli.command(short_help="Print a line that lets one sender pair.")
@click.option("--name", metavar="NAME", required=True, help="What the sender will be called here.")
@click.option("--address", type=ADDRESS, help="Where the sender reaches this receiver.")
@click.option("--disks", multiple=True, metavar="GLOB", help="Allow only VMs of such names.")
@click.option(
    "--datastore",
    "datastores",
    multiple=True,
    metavar="NAME",
    help="Allow only this datastore.",
)
@click.option(
    "--expires",
    type=DURATION,
    default=LIFETIME,
    help="How long the line can be used.  [default: 15m]",
)
@config_option
@state_option
def invite(
    name: str,
    address: Endpoint | None,
    disks: tuple[str, ...],
    datastores: tuple[str, ...],
    expires: float,
    config: Path | None,
    state: Path | None,
) -> None:
    """Print one line that lets one sender pair with this receiver; treat it as a password."""
    settings = configure(config=config, state=state)
    ours = load_or_create_identity(settings.state)
    identifier, secret = Invitations(settings.state).create(
        name,
        now=time.time(),
        entropy=secrets.token_bytes,
        lifetime=expires,
        disks=disks,
        datastores=datastores,
    )
    endpoint = address or _own_address(settings)
    click.echo(encode_invitation(Invitation(endpoint, ours.public, identifier, secret)))
    click.echo(
        f"give this line to flatship-sender join on {name}; it works once, within"
        f" {format_duration(expires)}, and leads to {endpoint}",
        err=True,
    )


@cli.group(invoke_without_command=True)
@click.pass_context
@state_option
def senders(context: click.Context, state: Path | None) -> None:
    """List the senders that are authorised, or revoke one."""
    context.obj = state
    if context.invoked_subcommand is None:
        _list_senders(_authorized(state), as_json=False)


@senders.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a sender.")
@state_option
@click.pass_obj
def list_(of_group: Path | None, as_json: bool, state: Path | None) -> None:
    """List the senders that are authorised."""
    _list_senders(_authorized(state or of_group), as_json=as_json)


@senders.command(short_help="Refuse a sender from now on.")
@click.argument("fingerprint")
@state_option
@click.pass_obj
def revoke(of_group: Path | None, fingerprint: str, state: Path | None) -> None:
    """Refuse the sender with this FINGERPRINT, or its beginning, from now on."""
    peer = _authorized(state or of_group).revoke(fingerprint)
    click.echo(f"revoked {printable(peer.name)} {peer.fingerprint}")


@cli.command(name="verify", short_help="Check a published disk.")
@click.argument("path", metavar="PATH.vmdk", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="SOURCE",
    type=click.Path(path_type=Path),
    help="Compare byte by byte with this file or block device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@state_option
def verify_(path: Path, against: Path | None, as_json: bool, state: Path | None) -> int:
    """Check a published disk: descriptor, extents, and every digest on record."""
    try:
        journal = Journal.open_read_only(state_folder("receiver", state))
    except JournalMissing:
        verdict = verify(path, None, against=against)
    else:
        with closing(journal):
            verdict = verify(path, journal, against=against)
    click.echo(_verdict_json(path, verdict) if as_json else _verdict_text(path, verdict))
    return 0 if verdict.ok else 1


@cli.command(name="list", short_help="List the disks that this receiver knows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a disk.")
@state_option
def list_images(as_json: bool, state: Path | None) -> None:
    """List every disk on record: its state, and of incomplete ones what is there."""
    try:
        journal = Journal.open_read_only(state_folder("receiver", state))
    except JournalMissing:
        return
    with closing(journal):
        for image in journal.images():
            if image.state is not ImageState.DISCARDED:
                known = describe(image, journal)
                click.echo(msgspec.json.encode(known) if as_json else image_line(known))


@cli.command(name="discard", short_help="Give up what an interrupted transfer left.")
@click.argument("path", metavar="PATH.vmdk", type=click.Path(path_type=Path))
@state_option
def discard_(path: Path, state: Path | None) -> None:
    """Remove the incomplete files of a disk; one that is published is not touched."""
    removed = discard(path)
    forget(state_folder("receiver", state), path)
    click.echo(f"{printable(str(path))}: {removed} incomplete files removed")


cli.add_command(config_command(read))
cli.add_command(password_command)
cli.add_command(completion_command(cli, "flatship-receiver"))


def main() -> None:
    """The program."""
    sys.exit(run(cli, (TransferError,)))


def _own_address(settings: Config) -> Endpoint:
    """The best guess at how others call this machine."""
    host = settings.listen.host
    return Endpoint(
        socket.getfqdn() if host in ANY_ADDRESS else host,
        settings.listen.port,
    )


def _authorized(state: Path | None) -> AuthorizedSenders:
    return AuthorizedSenders(state_folder("receiver", state))


def _list_senders(authorized: AuthorizedSenders, *, as_json: bool) -> None:
    for peer in authorized.peers():
        click.echo(msgspec.json.encode(_sender(peer)) if as_json else _sender_line(peer))


def _sender(peer: Peer) -> dict[str, object]:
    return {
        "schema_version": 1,
        "name": peer.name,
        "fingerprint": peer.fingerprint,
        "disks": peer.disks,
        "datastores": peer.datastores,
        "max_bytes": peer.max_bytes,
        "from": [str(network) for network in peer.networks],
    }


def _sender_line(peer: Peer) -> str:
    return f"{peer.fingerprint} {printable(peer.name)}"


def _verdict_text(path: Path, verdict: Verdict) -> str:
    lines = [
        f"{'ok' if check.ok else 'FAILED':7}{check.name}: {printable(check.detail)}"
        for check in verdict.checks
    ]
    agreed = "agrees" if verdict.ok else "does not agree, or cannot be proven"
    lines.append(f"{printable(str(path))} {agreed}; {format_size(verdict.bytes_read)} re-read")
    return "\n".join(lines)


def _verdict_json(path: Path, verdict: Verdict) -> bytes:
    return msgspec.json.encode(
        {
            "schema_version": 1,
            "disk": str(path),
            "ok": verdict.ok,
            "checks": [
                {"name": check.name, "ok": check.ok, "detail": check.detail}
                for check in verdict.checks
            ],
            "bytes_read": verdict.bytes_read,
            "root": verdict.root.hex() if verdict.root else None,
        }
    )
