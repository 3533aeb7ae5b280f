"""Credit grows with the distance, and with nothing else."""

import pytest

from flatship_receiver.credit import BOUND, FIRST, CreditWindow

GIGABIT = 125_000_000
MIB = 1 << 20


def settle(round_trip: float, link: float, *, store: float = 0.2, looks: int = 20) -> CreditWindow:
    """Look every 2 s while a sender uses what credit and link allow; ``store`` is the delay."""
    window, now = CreditWindow(0.0), 0.0
    for token in range(looks):
        window.asked(token, now)
        window.answered(token, now + round_trip)
        rate = min(link, window.credit / (round_trip + store))
        now += 2.0
        window.came(int(rate * 2.0))
        window.look(int(rate * store), now)
    return window


@pytest.mark.parametrize(("round_trip", "link"), [(2.5, GIGABIT), (0.5, 6 * GIGABIT)])
def test_where_the_first_credit_is_a_bound_it_grows_until_the_link_is(
    round_trip: float, link: float
) -> None:
    assert (round_trip + 0.2) * link > FIRST
    window = settle(round_trip, link)
    assert (round_trip + 0.2) * link < window.credit <= BOUND


@pytest.mark.parametrize(("round_trip", "link"), [(0.2, GIGABIT), (0.001, 80 * GIGABIT)])
def test_where_it_is_none_it_stays(round_trip: float, link: float) -> None:
    assert settle(round_trip, link, store=0.001).credit == FIRST


def test_it_never_exceeds_its_bound() -> None:
    assert settle(30.0, GIGABIT).credit == pytest.approx(BOUND)


def test_it_does_not_grow_while_the_datastore_is_waited_for() -> None:
    window = CreditWindow(0.0)
    window.asked(1, 0.0)
    window.answered(1, 2.0)
    window.came(500 * MIB)
    assert window.look(250 * MIB, 5.0) is None
    assert window.credit == FIRST


def test_it_never_shrinks() -> None:
    window = settle(2.5, GIGABIT)
    before = window.credit
    for second in range(100, 110):
        assert window.look(0, float(second)) is None
    assert window.credit == before


def test_an_answer_that_was_not_asked_for_says_nothing() -> None:
    window = CreditWindow(0.0)
    window.answered(0, 5.0)
    window.asked(7, 0.0)
    window.answered(8, 50.0)
    window.came(1000 * MIB)
    assert not window.wants_round_trip
    window.answered(7, 1.0)
    assert window.wants_round_trip
    assert window.look(0, 10.0) is None
    assert not window.wants_round_trip
