import pytest

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver.reservations import Reservations


def test_promises_add_up_against_the_free_space() -> None:
    reservations = Reservations("ssd")
    reservations.take("a", 60, 100)
    assert reservations.available(100) == 40
    with pytest.raises(DatastoreError, match="ssd") as error:
        reservations.take("b", 41, 100)
    assert error.value.code is ErrorCode.DATASTORE_FULL
    assert error.value.numbers == (41, 40)
    reservations.take("b", 40, 100)
    assert reservations.total == 100


def test_what_was_written_is_promised_no_more_and_never_becomes_negative() -> None:
    reservations = Reservations("ssd")
    reservations.take("a", 60, 100)
    reservations.used("a", 50)
    assert reservations.total == 10
    reservations.used("a", 50)
    assert reservations.total == 0
    reservations.used("nobody", 5)
    assert reservations.total == 0


def test_a_released_promise_is_gone_and_may_be_released_again() -> None:
    reservations = Reservations("ssd")
    reservations.take("a", 60, 100)
    reservations.release("a")
    reservations.release("a")
    assert reservations.total == 0


def test_space_that_others_used_up_leaves_nothing_available() -> None:
    reservations = Reservations("ssd")
    reservations.take("a", 60, 100)
    assert reservations.available(20) == 0
