import pytest

from flatship_sender import occupied
from flatship_sender.occupied import Occupied


def test_overlapping_stays_count_once_and_one_that_goes_on_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 10.0
    monkeypatch.setattr(occupied.time, "monotonic", lambda: now)
    watched = Occupied()
    assert watched.seconds == 0.0
    with watched:
        now = 11.0
        with watched:
            now = 13.0
            assert watched.seconds == 3.0
        now = 14.0
    now = 20.0
    assert watched.seconds == 4.0
    with watched:
        now = 21.0
    assert watched.seconds == 5.0
