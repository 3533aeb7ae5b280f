"""The sender's configuration: what it says, and what it is refused for."""

from datetime import datetime
from math import inf
from pathlib import Path

import pytest

from flatship_sender.config import configure
from flatship_service.errors import ConfigError

NOON = datetime(2026, 11, 23, 12, 0)  # a Monday
MIDNIGHT = datetime(2026, 11, 23, 0, 0)
FILE = """
[limits]
rate = "100Mbit"

[[limits.schedule]]
days = ["mon-fri"]
from = "08:00"
to = "18:00"
rate = "20Mbit"

[limits.receivers.store1]
rate = "unlimited"
schedule = [{ days = ["mon"], from = "00:00", to = "01:00", rate = 65536 }]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sender.toml"


def test_the_daemons_keys_have_defaults_and_bounds(path: Path) -> None:
    path.write_text("")
    config = configure(path)
    assert (str(config.http), config.jobs) == ("127.0.0.1:9472", 2)
    path.write_text('jobs = 64\n[http]\nlisten = "[::1]:80"\n')
    config = configure(path)
    assert (str(config.http), config.jobs) == ("[::1]:80", 64)
    for wrong in ("jobs = 0", "jobs = 65", '[http]\nlisten = "nowhere"'):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"jobs|listen"):
            configure(path)


def test_a_file_says_what_holds_when(path: Path) -> None:
    path.write_text(FILE)
    limits = configure(path).limits
    assert limits.for_site(NOON) == 2_500_000
    assert limits.for_site(MIDNIGHT) == 12_500_000
    assert limits.for_receiver("store1", NOON) == inf
    assert limits.for_receiver("store1", MIDNIGHT) == 65536
    assert limits.for_receiver("store2", MIDNIGHT) == inf


def test_congestion_control_is_the_files_to_say(path: Path) -> None:
    path.write_text('congestion_control = "reno"')
    assert configure(path).congestion_control == "reno"


def test_an_empty_file_limits_nothing(path: Path) -> None:
    path.write_text("")
    assert configure(path).limits.for_site(NOON) == inf


def test_the_systems_file_need_not_be_there_and_one_that_was_named_must(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_service.paths.SYSTEM_CONFIG", path.parent)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path.parent))
    assert configure(None).limits.for_site(NOON) == inf
    with pytest.raises(ConfigError, match="does not exist"):
        configure(path)


def period(days: str, start: str, end: str, rate: str = '"1MB"') -> str:
    return (
        f'[[limits.schedule]]\ndays = ["{days}"]\nfrom = "{start}"\nto = "{end}"\nrate = {rate}\n'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nrate = 0", "limits.rate: expected at least 8KiB/s"),
        ("[limits]\nrate = nan", "limits.rate: expected a number that is not negative, got nan"),
        ("[limits]\nrate = -1", "limits.rate: expected a number that is not negative, got -1"),
        ('[limits]\nrate = "-1MB"', "limits.rate: expected a rate such as 20MB"),
        ('[limits]\nrate = "fast"', "limits.rate: expected a rate such as 20MB"),
        ("[limits]\nrate = true", "limits.rate: expected a string such as people write"),
        ("[limits]\nsite = 1", "limits.site: unknown key"),
        ("limits = 7", "limits: expected table, got int"),
        ("[limits]\nschedule = 7", "limits.schedule: expected array"),
        (
            period("mon", "08:00", "18:00"),
            r"limits.schedule: no period covers mon 00:00; expected a rate beside the schedule",
        ),
        (
            '[limits]\nrate = "1MB"\n' + period("mon", "08:00", "18:00") * 2,
            "limits.schedule: periods mon 08:00 to 18:00 and mon 08:00 to 18:00 overlap at mon",
        ),
        (
            '[limits]\nrate = "1MB"\n' + period("Montag", "08:00", "18:00"),
            r"limits.schedule\[0\]: period Montag 08:00 to 18:00: expected days such as mon",
        ),
        (
            '[limits]\nrate = "1MB"\n' + period("mon", "08:00", "18:00", '"1kB"'),
            r"limits.schedule\[0\].rate: expected at least 8KiB/s",
        ),
        (
            '[limits]\nrate = "1MB"\n' + period("mon", "08:00", "18:00", '"fast"'),
            r"limits.schedule\[0\].rate: expected a rate such as 20MB",
        ),
        (
            '[limits]\nrate = "1MB"\n[[limits.schedule]]\ndays = ["mon"]',
            r"limits.schedule\[0\].from: required, and missing",
        ),
        (
            '[limits.receivers.store1]\nrate = "1kB"',
            "limits.receivers.store1.rate: expected at least 8KiB/s",
        ),
        ("limit = 1", "limit: unknown key"),
        (
            'congestion_control = "warp"',
            "congestion_control: 'warp' is not known to this kernel; expected one of: ",
        ),
        ("[limits", "not TOML"),
    ],
)
def test_what_makes_no_limit_is_refused_with_file_key_and_what_was_expected(
    path: Path, text: str, said: str
) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}:[0-9]+: {said}"):
        configure(path)


def test_the_fragment_that_is_at_fault_is_named(path: Path) -> None:
    path.write_text("")
    fragment = path.with_name("sender.conf.d") / "office.toml"
    fragment.parent.mkdir()
    fragment.write_text('[limits]\nrate = "fast"')
    with pytest.raises(ConfigError, match=f"^{fragment}:2: limits.rate"):
        configure(path)
