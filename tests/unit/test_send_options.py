from math import inf
from pathlib import Path

import pytest
from click.testing import CliRunner

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import UsageError
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_sender.cli import cli
from flatship_sender.daemon import send as send_disks
from flatship_sender.display import Silent
from flatship_sender.limits import worthwhile
from flatship_sender.order import Order, SendOptions, Source, Target
from flatship_sender.receivers import Receiver
from flatship_service.keys import Identity

KIB = 1024


def send(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["send", "x", "--to", "esx", "--vm", "a", *options])
    return result.exit_code, result.output


@pytest.mark.parametrize("limit", ["0", "8000", "64Kbit", "8191"])
def test_a_limit_that_a_receiver_takes_for_a_dead_link_is_refused(limit: str) -> None:
    exit_code, output = send("--limit", limit)
    assert exit_code == 2
    assert "at least 8KiB/s" in output


@pytest.mark.parametrize("connections", ["0", "15"])
def test_connections_that_leave_none_for_replacement_are_refused(connections: str) -> None:
    exit_code, output = send("--connections", connections)
    assert exit_code == 2
    assert "1<=x<=14" in output


@pytest.mark.parametrize(
    ("asked", "limit", "used"),
    [
        (4, inf, 4),
        (4, 256 * KIB, 4),
        (4, 256 * KIB - 1, 3),
        (4, 64 * KIB, 1),
        (4, 8 * KIB, 1),
        (1, 1 << 30, 1),
    ],
)
def test_a_limit_is_shared_by_no_more_connections_than_it_can_feed(
    asked: int, limit: float, used: int
) -> None:
    assert worthwhile(asked, limit) == used


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--snapshot",), "needs --live"),
        (("--live", "--snapshot-size", "1GiB"), "add --snapshot"),
    ],
)
def test_snapshots_are_for_what_is_in_use(options: tuple[str, ...], says: str) -> None:
    exit_code, output = send(*options)
    assert exit_code == 2
    assert says in output


@pytest.mark.parametrize("patience", ["soon", "-1", "1x", ""])
def test_patience_is_a_duration(patience: str) -> None:
    exit_code, output = send("--patience", patience)
    assert exit_code == 2
    assert "expected a duration such as" in output


@pytest.mark.parametrize(
    ("options", "seconds"),
    [((), 86400.0), (("--patience", "0"), 0.0), (("--patience", "1h30m"), 5400.0)],
)
def test_patience_is_a_day_unless_told_otherwise(options: tuple[str, ...], seconds: float) -> None:
    command = cli.commands["send"]
    context = command.make_context("send", ["x", "--to", "esx", "--vm", "a", *options])
    assert context.params["patience"] == seconds


@pytest.mark.parametrize("downtime", ["0", "0s", "-5m", "soon", ""])
def test_a_downtime_is_a_duration_longer_than_nothing(downtime: str) -> None:
    exit_code, output = send("--live", "--until-downtime", downtime)
    assert exit_code == 2
    assert "expected a duration such as" in output


def test_passes_until_the_downtime_fits_are_passes_over_a_source_in_use() -> None:
    exit_code, output = send("--until-downtime", "5m")
    assert exit_code == 2
    assert "it needs --live" in output


def test_more_disks_than_a_machine_can_have_are_refused(tmp_path: Path) -> None:
    identity = Identity(bytes(32), bytes(32))
    receiver = Receiver("esx", Endpoint("localhost", 1), bytes(32), bytes(32))
    target = Target(
        "web", "", DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14, replace=False
    )
    options = SendOptions(4, "auto", None, live=False, dry_run=False, http=None)
    sources = tuple(Source(f"/dev/vg0/{number}") for number in range(257))
    with pytest.raises(UsageError, match="257 disks are more than a virtual machine can have"):
        send_disks(Order(sources, receiver, identity, tmp_path, target, options), Silent(), "0")
