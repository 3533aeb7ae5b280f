from collections.abc import Iterator
from random import Random

import pytest

from flatship_receiver.admission import (
    EARLY_DROP_FROM,
    MAX_PENDING,
    MAX_PENDING_PER_ADDRESS,
    Admission,
    Refusal,
)


class Fixed(Random):
    """A source of entropy that always says the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


NEVER_DROPS = Fixed(1.0)  # past what random() returns, and so past every probability
ALWAYS_DROPS = Fixed(0.0)


def addresses() -> Iterator[str]:
    return (f"10.0.{number // 256}.{number % 256}" for number in range(65536))


def filled(random: Random, count: int) -> Admission:
    admission = Admission(random)
    for address, _ in zip(addresses(), range(count), strict=False):
        assert admission.admit(address, now=0.0) is None
    return admission


def test_first_connections_are_admitted_whatever_chance_says() -> None:
    admission = filled(ALWAYS_DROPS, EARLY_DROP_FROM)

    assert admission.pending == EARLY_DROP_FROM


def test_from_ten_pending_on_some_are_dropped_early() -> None:
    admission = filled(ALWAYS_DROPS, EARLY_DROP_FROM)

    assert admission.admit("192.0.2.1", now=0.0) is Refusal.EARLY_DROP


def test_early_drops_become_likelier_as_the_queue_fills() -> None:
    def drops(pending: int) -> int:
        random = Random(1)
        return sum(filled_and_asked(pending, random) is Refusal.EARLY_DROP for _ in range(200))

    def filled_and_asked(pending: int, random: Random) -> Refusal | None:
        admission = filled(NEVER_DROPS, pending)
        admission.random = random
        return admission.admit("192.0.2.1", now=0.0)

    assert drops(9) == 0
    assert 0 < drops(20) < drops(40) < drops(60) < 200


def test_no_more_than_the_limit_is_ever_pending() -> None:
    admission = filled(NEVER_DROPS, MAX_PENDING)

    assert admission.admit("192.0.2.1", now=0.0) is Refusal.PENDING


def test_one_address_has_only_so_many_pending() -> None:
    admission = Admission(NEVER_DROPS)
    for _ in range(MAX_PENDING_PER_ADDRESS):
        assert admission.admit("192.0.2.1", now=0.0) is None

    assert admission.admit("192.0.2.1", now=0.0) is Refusal.ADDRESS
    assert admission.admit("192.0.2.2", now=0.0) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8::ffff:1"), ("192.0.2.1", "::ffff:192.0.2.1")],
)
def test_addresses_of_one_host_count_together(one: str, other: str) -> None:
    admission = Admission(NEVER_DROPS)
    for _ in range(MAX_PENDING_PER_ADDRESS):
        admission.admit(one, now=0.0)

    assert admission.admit(other, now=0.0) is Refusal.ADDRESS


def test_neighbouring_networks_count_apart() -> None:
    admission = Admission(NEVER_DROPS)
    for _ in range(MAX_PENDING_PER_ADDRESS):
        admission.admit("2001:db8:0:1::1", now=0.0)

    assert admission.admit("2001:db8:0:2::1", now=0.0) is None


def test_handshake_that_is_done_makes_room() -> None:
    admission = Admission(NEVER_DROPS)
    for _ in range(MAX_PENDING_PER_ADDRESS):
        admission.admit("192.0.2.1", now=0.0)

    admission.done("192.0.2.1")

    assert admission.admit("192.0.2.1", now=0.0) is None


def test_nothing_is_remembered_of_addresses_that_are_done() -> None:
    admission = Admission(NEVER_DROPS)
    for address, second in zip(addresses(), range(500), strict=False):
        admission.admit(address, now=float(second))
        admission.done(address)

    assert admission.pending == 0
    assert len(admission._pending) == 0


def quick(admission: Admission, count: int, now: float) -> list[Refusal | None]:
    """Handshakes that are done at once, so that only their rate counts."""
    results = []
    for _ in range(count):
        result = admission.admit("192.0.2.1", now)
        results.append(result)
        if result is None:
            admission.done("192.0.2.1")
    return results


def test_a_hundred_handshakes_a_second_are_enough() -> None:
    admission = Admission(NEVER_DROPS)

    assert quick(admission, 101, now=5.0) == [None] * 100 + [Refusal.RATE]
    assert quick(admission, 51, now=5.5) == [None] * 50 + [Refusal.RATE]


def test_idle_time_saves_up_no_more_than_one_second() -> None:
    admission = Admission(NEVER_DROPS)

    assert quick(admission, 101, now=0.0)[-1] is Refusal.RATE
    assert quick(admission, 101, now=3600.0) == [None] * 100 + [Refusal.RATE]


def test_address_over_its_limit_does_not_use_up_the_rate_of_others() -> None:
    admission = Admission(NEVER_DROPS)
    for _ in range(1000):
        admission.admit("192.0.2.1", now=0.0)

    assert admission.admit("192.0.2.2", now=0.0) is None


def test_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    admission = Admission(NEVER_DROPS)
    quick(admission, 100, now=10.0)

    assert quick(admission, 1, now=10.0) == [Refusal.RATE]
    assert quick(admission, 1, now=3.0) == [Refusal.RATE]
    assert quick(admission, 1, now=3.5) == [None]
