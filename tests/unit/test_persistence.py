import shlex

import pytest

from flatship_protocol.errors import (
    ConnectionClosed,
    ConnectionLost,
    ErrorCode,
    RecordNotAuthentic,
    SourceReadError,
    StaleEpoch,
    TransferError,
    UnexpectedMessage,
)
from flatship_sender.persistence import (
    FIRST_DELAY,
    MAX_DELAY,
    PatienceEnded,
    Persistence,
    lacking,
    lost_with,
    worth_another_try,
)
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.refusals import NotAuthorised, RefusedByReceiver

DAY = 86400.0
GIB = 1 << 30
LOST = ConnectionLost("the link failed")


def refused(code: ErrorCode) -> RefusedByReceiver:
    return RefusedByReceiver(code, (0, 0))


def failed(error: TransferError, **counts: int) -> DiskProgress:
    return DiskProgress(
        "/dev/x",
        "web/web.vmdk",
        4 * GIB,
        TransferState.FAILED,
        error=str(error),
        error_code=error.code,
        exit_code=error.exit_code,
        **counts,
    )


# which errors


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        ConnectionClosed("gone"),
        RecordNotAuthentic(7),
        refused(ErrorCode.SHUTTING_DOWN),
        refused(ErrorCode.DISK_BUSY),  # the session before is not let go of yet
        refused(ErrorCode.IDLE),
        refused(ErrorCode.TOO_SLOW),
        refused(ErrorCode.TOO_MANY_SESSIONS),
        NotAuthorised("esx", pairing=False),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_worth_another_try(error: TransferError) -> None:
    assert worth_another_try(error)


@pytest.mark.parametrize(
    "error",
    [
        StaleEpoch("another run"),
        UnexpectedMessage("out of place"),
        SourceReadError("sector 7"),
        refused(ErrorCode.STALE_EPOCH),
        refused(ErrorCode.INTERNAL),
        refused(ErrorCode.NOT_PERMITTED),
    ],
    ids=str,
)
def test_what_would_repeat_itself_is_not(error: TransferError) -> None:
    assert not worth_another_try(error)


def test_only_a_disk_that_failed_with_the_session_was_lost_with_it() -> None:
    assert lost_with(failed(LOST), LOST)
    shutting_down = refused(ErrorCode.SHUTTING_DOWN)
    assert lost_with(failed(shutting_down), shutting_down)
    for own in (SourceReadError("sector 7"), refused(ErrorCode.DATASTORE_FULL), TransferError("x")):
        assert not lost_with(failed(own), LOST)
    for state in (TransferState.PUBLISHED, TransferState.UNPUBLISHED, TransferState.CANCELLED):
        assert not lost_with(DiskProgress("s", "t", 512, state), LOST)


# how long


def delays(persistence: Persistence, chance: float, count: int, now: float = 0.0) -> list[float]:
    found = [persistence.next_delay(now, chance) for _ in range(count)]
    assert None not in found
    return [delay for delay in found if delay is not None]


def test_waits_double_from_the_first_to_the_longest() -> None:
    assert delays(Persistence(DAY, 0.0), 1.0, 9) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (FIRST_DELAY, MAX_DELAY) == (1, 60)


def test_waits_are_drawn_from_all_of_their_length() -> None:
    assert delays(Persistence(DAY, 0.0), 0.0, 9) == [0.0] * 9
    assert delays(Persistence(DAY, 0.0), 0.25, 4) == [0.25, 0.5, 1.0, 2.0]


def test_waits_stay_finite_however_many_tries_fail() -> None:
    assert delays(Persistence(DAY, 0.0), 1.0, 5000)[-1] == MAX_DELAY


def test_the_last_try_is_made_when_patience_ends_and_none_after() -> None:
    persistence = Persistence(10.0, 100.0)
    assert persistence.gives_up_at == 110.0
    assert delays(persistence, 1.0, 3, now=108.0) == [1.0, 2.0, 2.0]
    assert persistence.next_delay(110.0, 1.0) is None
    assert persistence.next_delay(200.0, 0.0) is None


def test_progress_renews_patience_and_makes_waits_short_again() -> None:
    persistence = Persistence(10.0, 100.0)
    delays(persistence, 1.0, 5, now=101.0)
    persistence.progressed(109.0)
    assert persistence.gives_up_at == 119.0
    assert delays(persistence, 1.0, 2, now=110.0) == [1.0, 2.0]


def test_progress_that_is_no_news_renews_nothing() -> None:
    persistence = Persistence(10.0, 100.0)
    delays(persistence, 1.0, 2, now=101.0)
    persistence.progressed(100.0)
    persistence.progressed(0.0)  # of a disk that never got on
    assert persistence.gives_up_at == 110.0
    assert delays(persistence, 1.0, 1, now=102.0) == [4.0]


def test_without_patience_there_is_no_try() -> None:
    persistence = Persistence(0.0, 100.0)
    persistence.progressed(150.0)
    assert persistence.next_delay(150.0, 0.0) is None
    assert persistence.waited(200.0) == 0


# what is said


def test_the_end_of_patience_says_why_what_is_missing_and_how_to_go_on() -> None:
    command = shlex.join(["flatship-sender", "send", "my disk", "--to", "esx"])
    missing = [lacking(failed(LOST, acked=GIB)), "the proof of web/web_1.vmdk"]
    error = PatienceEnded(LOST, 3700.0, missing, command)
    assert error.exit_code == 3
    assert str(error) == (
        "the link failed; nothing got on for 1h 01m; missing: 3.0 GiB of 4.0 GiB of web/web.vmdk,"
        " the proof of web/web_1.vmdk;"
        " to go on where it stopped, run: flatship-sender send 'my disk' --to esx"
    )


def test_without_patience_nobody_is_told_of_waiting() -> None:
    assert "nothing got on" not in str(PatienceEnded(LOST, 0.0, ["a disk"], "x"))


def test_what_is_all_there_lacks_its_proof() -> None:
    assert lacking(failed(LOST, acked=3 * GIB, held=GIB)) == "the proof of web/web.vmdk"
