"""The limit in force: of the site, of the receiver, of the command; by the clock; shared."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import pytest

from flatship_sender import limits as limits_module
from flatship_sender.config import MIN_LIMIT, Config, configure
from flatship_sender.limits import Limiter, SharesNotNoted
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.shares import CAUTION, Entry, Table
from flatship_sender.throttle import Throttle
from flatship_service.workers import Workers

MEGABYTE = 1_000_000
NIGHT, OFFICE = datetime(2026, 11, 23, 7, 59, 59), datetime(2026, 11, 23, 8, 0)
SITE = '[limits]\nrate = "10MB"\n'
RECEIVER = '[limits.receivers.esx1]\nrate = "4MB"\n'
SCHEDULE = '[[limits.schedule]]\ndays = ["mon"]\nfrom = "08:00"\nto = "18:00"\nrate = "1MB"\n'


class Site:
    """A sender's host: its configuration, its state folder, its wall clock."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.file = folder / "sender.toml"
        self.file.write_text("")
        self.now = NIGHT
        self.workers = Workers(1, "worker")

    def read(self) -> Config:
        return configure(self.file)

    def begin(self, *, receiver: str = "esx1", disks: int = 1, **own: Any) -> Limiter:
        self.progress = TransferProgress(
            receiver, "vm", [DiskProgress("s", f"d{each}", 1) for each in range(disks)]
        )
        return Limiter(
            self.read(),
            self.read,
            Throttle(),
            self.progress,
            Table(self.state),
            self.workers,
            now=lambda: self.now,
            **own,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.workers.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "own", "rate"),
    [
        ("", {}, inf),
        ("", {"command": 3 * MEGABYTE}, 3 * MEGABYTE),
        (SITE, {}, 10 * MEGABYTE),
        (SITE + RECEIVER, {}, 4 * MEGABYTE),
        (SITE + RECEIVER, {"command": 3 * MEGABYTE}, 3 * MEGABYTE),
        (SITE + RECEIVER, {"command": 5 * MEGABYTE}, 4 * MEGABYTE),
        (SITE + RECEIVER.replace("esx1", "esx2"), {}, 10 * MEGABYTE),
        (SITE, {"a_disk": 2 * MEGABYTE, "disks": 3}, 6 * MEGABYTE),
        (SITE, {"a_disk": 2 * MEGABYTE, "disks": 9}, 10 * MEGABYTE),
    ],
)
def test_the_tightest_limit_counts(site: Site, file: str, own: dict[str, Any], rate: float) -> None:
    async def scenario() -> None:
        site.file.write_text(file)
        limiter = site.begin(**own)
        await limiter.look()
        assert (limiter.rate, limiter.ceiling) == (rate, rate)
        assert site.progress.limit == (None if rate == inf else rate)

    run(scenario)


def test_disks_that_are_done_leave_their_limits_to_nobody(site: Site) -> None:
    async def scenario() -> None:
        limiter = site.begin(a_disk=MEGABYTE, disks=3)
        site.progress.disks[1].state = TransferState.PUBLISHED
        await limiter.look()
        assert limiter.rate == 2 * MEGABYTE

    run(scenario)


def test_a_clock_that_passes_or_jumps_over_an_edge_changes_the_limit_at_the_next_look(
    site: Site,
) -> None:
    async def scenario() -> None:
        site.file.write_text(SITE + SCHEDULE)
        limiter = site.begin()
        for moment, rate in ((NIGHT, 10), (OFFICE, 1), (NIGHT, 10), (OFFICE, 1)):
            site.now = moment
            await limiter.look()
            assert limiter.rate == rate * MEGABYTE

    run(scenario)


def test_looks_are_taken_each_second(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        assert limits_module.INTERVAL <= 1
        monkeypatch.setattr(limits_module, "INTERVAL", 0.01)
        site.file.write_text(SITE + SCHEDULE)
        limiter = site.begin()
        running = asyncio.create_task(limiter.run())
        site.now = OFFICE
        async with asyncio.timeout(10):
            while limiter.rate != MEGABYTE:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        running.cancel()

    run(scenario)


def test_a_configuration_that_is_read_again_counts_at_once(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        limiter = site.begin()
        await limiter.look()
        site.file.write_text(SITE)
        await limiter.read_again()
        assert limiter.rate == 10 * MEGABYTE
        site.file.write_text("")
        await limiter.read_again()
        assert limiter.rate == inf
        said = capsys.readouterr().err
        assert said == ("configuration read again: 10.0 MB/s\nconfiguration read again: no limit\n")

    run(scenario)


def test_one_that_cannot_be_used_changes_nothing_and_says_why(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        site.file.write_text(SITE)
        limiter = site.begin()
        await limiter.look()
        site.file.write_text('[limits]\nrate = "fast"')
        await limiter.read_again()
        await limiter.look()
        assert limiter.rate == 10 * MEGABYTE
        assert "the limits stay as they were: " in (said := capsys.readouterr().err)
        assert f"{site.file}:2: limits.rate: expected a rate" in said

    run(scenario)


def test_a_second_run_begins_with_little_and_gets_its_half_when_the_first_has_let_go(
    site: Site,
) -> None:
    async def scenario() -> None:
        site.file.write_text(SITE)
        first, second = site.begin(), site.begin(receiver="esx2")
        await first.look()
        assert first.rate == 10 * MEGABYTE
        sums = []
        for _ in range(CAUTION + 2):
            for limiter in (second, first):
                limiter._throttle.waited = True
                await limiter.look()
            sums.append(first.rate + second.rate)
        assert first.rate == second.rate == 5 * MEGABYTE
        assert max(sums) <= 10 * MEGABYTE + MIN_LIMIT
        second._table.close()
        await first.look()
        assert first.rate == 10 * MEGABYTE

    run(scenario)


def test_a_run_that_cannot_be_told_of_keeps_the_limit_it_had(site: Site) -> None:
    async def scenario() -> None:
        site.file.write_text(SITE)
        limiter = site.begin(command=2 * MEGABYTE)
        (site.state / "limits").write_text("in the way")
        with pytest.raises(SharesNotNoted, match=r"limits.*cannot be used to share a limit"):
            await limiter.look()

    run(scenario)


def test_runs_without_limits_to_share_leave_no_trace(site: Site) -> None:
    async def scenario() -> None:
        limiter = site.begin(command=MEGABYTE)
        await limiter.look()
        assert os.listdir(site.state) == ["sender.toml"]
        table = Table(site.state)
        table.publish(Entry("esx2"))
        await limiter.look()
        assert limiter.rate == MEGABYTE
        table.close()

    run(scenario)
