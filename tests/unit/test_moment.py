import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from flatship_sender.commands.moment import parse_moment

NOW = 1_770_000_000.0  # 2026-02-02 03:40:00 in Berlin


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def parse(text: str) -> float:
    return parse_moment(text, datetime.fromtimestamp(NOW).astimezone())


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2h", NOW + 7200),
        ("90s", NOW + 90),
        ("22:30", "2026-02-02T22:30+01:00"),
        ("03:00", "2026-02-03T03:00+01:00"),
        ("2026-07-01T22:30", "2026-07-01T22:30+02:00"),
        ("2026-07-01 22:30:05", "2026-07-01T22:30:05+02:00"),
        ("2026-07-01T22:30Z", "2026-07-01T22:30+00:00"),
    ],
)
def test_times_mean_what_people_mean(text: str, when: float | str) -> None:
    expected = datetime.fromisoformat(when).timestamp() if isinstance(when, str) else when
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-13-01T00:00", "-2h", "22:30Z"])
def test_what_is_no_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time of day such as"):
        parse(text)
