"""Whatever the network does to a transfer, nothing wrong is published, and the next run repairs it.

The sender runs over one connection through a proxy, which does its harm once at one place.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

import pytest
from disks import MIB, make_data_disk, same_content
from processes import CompletedRun, Pair, Running, wait_until
from proxy import (
    Direction,
    Harm,
    Proxy,
    cut_before,
    cut_inside,
    drop,
    duplicate,
    flip,
    no_harm,
    stall,
    swap,
)

from flatship_protocol.handshake import INITIATION_SIZE, RESPONSE_SIZE

INCOMPLETE = ".flatship-part"
SIZE: Final = 4 * MIB
ONE_CONNECTION: Final = ("--connections", "1", "--quiet", "--compression", "off")

# Handshake, HELLO, OPEN_DISK, ZERO, three CHUNKs, END_PASS, GOODBYE; handshake, HELLO_OK,
# DISK_OPENED, STORED, DISK_PROVEN. A STORED or PROVING more may come.
UNITS: Final = [(Direction.TO_RECEIVER, unit) for unit in range(9)] + [
    (Direction.TO_SENDER, unit) for unit in range(5)
]
_numbers: Final = count()
GOODBYE: Final = (Direction.TO_RECEIVER, 8)


@dataclass
class Link:
    """A sender and its receiver with a proxy between them; ``vm`` is this test's."""

    pair: Pair
    proxy: Proxy
    disk: Path
    vm: str = ""

    def send(self, harm: Harm) -> CompletedRun:
        """Send the disk through the harm."""
        self.proxy.harm = harm
        return self.pair.sender.send(self.disk, vm=self.vm, options=ONE_CONNECTION, to="proxy")

    def start_send(self, harm: Harm) -> Running:
        """Begin to."""
        self.proxy.harm = harm
        return self.pair.sender.start_send(
            self.disk, vm=self.vm, options=ONE_CONNECTION, to="proxy"
        )

    def repair(self) -> None:
        """The same command again, over a network that is well."""
        self.send(no_harm).expect(0)
        self.check_published()

    def check_published(self) -> None:
        """What is published is what was sent."""
        assert self.pair.receiver.descriptor(self.vm).exists()
        assert same_content(self.disk, self.pair.receiver.flat(self.vm), SIZE)

    def check_nothing_published(self) -> None:
        """Nothing under a name that a host would look at; what there is, is kept to go on with."""
        receiver = self.pair.receiver
        assert all(name.endswith(INCOMPLETE) for name in receiver.files(self.vm))
        assert "Traceback" not in receiver.log


@pytest.fixture(scope="module")
def open_link(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    disk = make_data_disk(tmp_path_factory.mktemp("disk") / "disk", 3 * MIB)
    with disk.open("r+b") as file:
        file.truncate(SIZE)
    with Proxy(pair.receiver.address) as proxy:
        pair.sender.knows("proxy", proxy.address)
        yield Link(pair, proxy, disk)


@pytest.fixture
def link(open_link: Link) -> Link:
    """The link, for a VM that no other test sends."""
    return replace(open_link, vm=f"vm{next(_numbers)}")


def name_of(unit: tuple[Direction, int]) -> str:
    return f"{unit[1]} {unit[0].value}"


def test_the_proxy_by_itself_does_no_harm_and_sees_every_message(link: Link) -> None:
    link.send(no_harm).expect(0)
    link.check_published()
    assert link.proxy.units[Direction.TO_RECEIVER] == 9
    assert link.proxy.units[Direction.TO_SENDER] >= 5


@pytest.mark.parametrize("unit", [u for u in UNITS if u != GOODBYE], ids=name_of)
def test_cut_at_any_message_ends_in_one_line_and_the_same_command_works(
    link: Link, unit: tuple[Direction, int]
) -> None:
    run = link.send(cut_before(*unit))
    assert run.exit_code not in {0, 2}, str(run)
    assert run.error
    if link.pair.receiver.descriptor(link.vm).exists():
        # The proof of it was lost on the way: the disk stands, and that is what is said next.
        assert unit[0] is Direction.TO_SENDER
        assert unit[1] >= 3
        link.check_published()
        link.send(no_harm).expect(11)
        return
    link.check_nothing_published()
    link.repair()


def test_cut_before_goodbye_does_no_harm(link: Link) -> None:
    link.send(cut_before(*GOODBYE)).expect(0)
    link.check_published()


@pytest.mark.parametrize(
    ("direction", "unit", "size"),
    [
        (Direction.TO_RECEIVER, 0, INITIATION_SIZE - 1),
        (Direction.TO_SENDER, 0, RESPONSE_SIZE - 1),
        (Direction.TO_RECEIVER, 1, 7),
        (Direction.TO_RECEIVER, 5, 500_000),
        (Direction.TO_SENDER, 2, 9),
    ],
)
def test_cut_inside_a_message_ends_in_one_line_and_the_same_command_works(
    link: Link, direction: Direction, unit: int, size: int
) -> None:
    run = link.send(cut_inside(direction, unit, size))
    assert run.exit_code not in {0, 2}, str(run)
    assert run.error
    link.check_nothing_published()
    link.repair()


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bit_never_publishes_a_wrong_disk(link: Link, seed: int) -> None:
    random = Random(seed)
    direction, unit = random.choice([u for u in UNITS if u[1] not in {4, 8}])
    run = link.start_send(flip(direction, unit, random.getrandbits(24)))
    # A length that grew makes both ends wait for bytes that never come: the operator ends that.
    try:
        finished = run.wait(3.0)
    except AssertionError:
        finished = None
    if finished is not None:
        assert finished.exit_code not in {0, 2}, str(finished)
        assert finished.error
    if not link.pair.receiver.descriptor(link.vm).exists():
        link.repair()
    link.check_published()


@pytest.mark.parametrize("harm", [duplicate, drop, swap])
def test_records_out_of_order_end_the_transfer(
    link: Link, harm: Callable[[Direction, int], Harm]
) -> None:
    run = link.start_send(harm(Direction.TO_RECEIVER, 5)).wait(15.0)
    assert run.exit_code not in {0, 2}, str(run)
    assert run.error
    link.check_nothing_published()
    link.repair()


@pytest.mark.parametrize("direction", Direction)
def test_stalled_transfer_is_taken_over_by_the_next_run(link: Link, direction: Direction) -> None:
    run = link.start_send(stall(direction, 3))
    wait_until(lambda: link.pair.receiver.files(link.vm) != [], "disk opened")
    run.kill()
    link.repair()
