"""Runs on one host share a limit, each for itself and all to the same result."""

import os
import signal
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from flatship_sender.shares import CAUTION, Caution, Entry, Table, divide, own_share

LEAST = 8.0


def everyones(
    entries: list[Entry], *, site: float = inf, receivers: dict[str, float] | None = None
) -> list[float]:
    return [
        own_share(
            each,
            entries[:index] + entries[index + 1 :],
            site=site,
            receiver=(receivers or {}).get(each.receiver, inf),
            least=LEAST,
        )
        for index, each in enumerate(entries)
    ]


def test_a_run_that_is_alone_has_all_of_the_limit_whatever_it_uses() -> None:
    assert everyones([Entry("a", want=LEAST)], site=100) == [100]


def test_runs_that_want_all_get_equal_parts() -> None:
    assert everyones([Entry("a"), Entry("b"), Entry("b")], site=90) == [30, 30, 30]


def test_what_one_run_does_not_want_the_others_get() -> None:
    assert everyones([Entry("a", want=10), Entry("b"), Entry("b")], site=90) == [10, 40, 40]


def test_what_a_run_must_not_use_the_others_get() -> None:
    assert everyones([Entry("a", most=20), Entry("b")], site=90) == [20, 70]


def test_a_receivers_limit_is_shared_by_those_who_send_to_it() -> None:
    entries = [Entry("a"), Entry("a"), Entry("b")]
    assert everyones(entries, site=100, receivers={"a": 40}) == [20, 20, pytest.approx(100 / 3)]


def test_runs_that_want_little_leave_the_rest_to_whoever_may_use_it() -> None:
    shares = everyones([Entry("a", want=10, most=20), Entry("b", want=10)], site=100)
    assert shares == [20, 80]


@pytest.mark.parametrize("count", range(1, 12))
def test_shares_never_sum_up_to_more_than_the_limit_unless_each_is_the_least(count: int) -> None:
    entries = [
        Entry("ab"[each % 2], None if each % 3 else 9.0 * each, None if each % 4 else 30.0)
        for each in range(1, count + 1)
    ]
    for site in (100.0, 250.0):
        assert sum(everyones(entries, site=site)) <= max(site, count * LEAST) + 1e-6


def test_nobody_gets_less_than_a_connection_needs_to_live() -> None:
    assert divide(10, [Entry("a")] * 3, LEAST) == [LEAST] * 3


def test_without_a_limit_nobody_is_held_back() -> None:
    assert everyones([Entry("a"), Entry("b", most=5)]) == [inf, LEAST]


def test_less_is_taken_at_once_and_more_only_when_others_had_time_to_take_less() -> None:
    caution = Caution(LEAST)
    looks = [caution.look(50, alone=False) for _ in range(CAUTION)]
    assert looks == [LEAST] * (CAUTION - 1) + [50]
    assert caution.look(20, alone=False) == 20
    assert caution.look(50, alone=False) == 20
    assert caution.look(50, alone=True) == 50


def test_runs_see_each_other_and_not_themselves(tmp_path: Path) -> None:
    first, second = Table(tmp_path), Table(tmp_path)
    first.publish(Entry("a"))
    assert first.others() == []
    second.publish(Entry("b", 5.0, 6.0))
    second.publish(Entry("b", 7.0, 8.0))
    assert first.others() == [Entry("b", 7.0, 8.0)]
    assert second.others() == [Entry("a")]
    second.close()
    second.close()
    assert first.others() == []
    first.close()
    assert list((tmp_path / "limits").iterdir()) == []


def test_a_run_that_was_killed_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flatship_sender.shares import *\n"
        "table = Table(Path(sys.argv[1])); table.publish(Entry('a')); print(flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        mine = Table(tmp_path)
        mine.publish(Entry("b"))
        assert mine.others() == [Entry("a")]
        os.kill(other.pid, signal.SIGKILL)
        other.wait(10)
    assert mine.others() == []
    assert len(list((tmp_path / "limits").iterdir())) == 1
    mine.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"receiver": 7}', b"\xff" * 600])
def test_an_entry_that_cannot_be_read_counts_as_one_that_wants_all(
    tmp_path: Path, content: bytes
) -> None:
    mine, other = Table(tmp_path), Table(tmp_path)
    mine.publish(Entry("a"))
    other.publish(Entry("b"))
    (path,) = set((tmp_path / "limits").iterdir()) - {mine._path}
    path.write_bytes(content)
    assert [each.want for each in mine.others()] == [None]
    mine.close()
    other.close()
