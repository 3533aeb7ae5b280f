"""The controller on a model of machine, disk and link, in which it cannot see the truth."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_sender.compression import (
    CPU_PER_BYTE,
    LADDER,
    MAX_LEVEL,
    MEMORY,
    MIN_LEVEL,
    PROBE_INTERVAL,
    CompressionController,
    Rung,
)

MIB = 1 << 20
WINDOW = 0.25  # seconds
MBIT = 1e6 / 8  # bytes per second
CORES = 2


@dataclass
class Model:
    """What would happen: ``machine`` times as fast, ``disk`` times as compressible as the table."""

    controller: CompressionController
    link: float
    machine: float = 1.0
    disk: float = 1.0
    levels: list[int | None] = field(default_factory=list)

    def ratio(self, rung: Rung) -> float:
        return 1 + (rung.ratio - 1) * self.disk

    def cpu(self, rung: Rung) -> float:
        return CORES / (1 / (rung.speed * self.machine) + CPU_PER_BYTE)

    def rate(self, rung: Rung) -> float:
        return min(self.cpu(rung), self.link * self.ratio(rung))

    @property
    def best(self) -> float:
        return max(self.rate(rung) for rung in LADDER)

    @property
    def present(self) -> float:
        return self.rate(rung_of(self.controller.level))

    def run(self, windows: int) -> None:
        for _ in range(windows):
            rung = rung_of(self.controller.level)
            sent = self.rate(rung) * WINDOW
            for _ in range(max(1, min(16, int(sent / MIB)))):
                level = self.controller.next_level()
                if level is not None:
                    used = rung_of(level)
                    payload = int(MIB / self.ratio(used))
                    seconds = MIB / (used.speed * self.machine)
                    self.controller.note_chunk(level, MIB, payload, seconds)
            saturated = self.link * self.ratio(rung) < self.cpu(rung)
            self.controller.note_window(
                int(sent / self.ratio(rung)), int(sent), WINDOW, saturated=saturated
            )
            self.levels.append(self.controller.level)

    def changes(self, last: int) -> int:
        recent = self.levels[-last:]
        return sum(a != b for a, b in pairwise(recent))


def rung_of(level: int | None) -> Rung:
    return next(rung for rung in LADDER if rung.level == level)


def model(link: float, machine: float = 1.0, disk: float = 1.0) -> Model:
    return Model(CompressionController("auto", CORES), link, machine, disk)


def test_a_link_that_never_makes_chunks_wait_gets_them_raw() -> None:
    at = model(40_000 * MBIT)
    at.run(100)
    assert set(at.levels) == {None}


def test_a_slow_link_gets_a_high_level_at_once() -> None:
    at = model(10 * MBIT)
    at.run(4)
    level = at.controller.level
    assert level is not None
    assert level >= 6


def test_a_gigabit_gets_a_level_that_the_cores_can_keep_up_with() -> None:
    at = model(1000 * MBIT)
    at.run(40)
    assert at.controller.level in (1, 3)


def test_a_slow_machine_on_a_fast_link_sends_raw() -> None:
    at = model(1000 * MBIT, machine=0.05)
    at.run(60)
    assert at.controller.level is None


@pytest.mark.parametrize("link", [10, 100, 1000])
def test_what_does_not_compress_goes_raw(link: float) -> None:
    at = model(link * MBIT, disk=0.0)
    at.run(2 * MEMORY)
    assert at.controller.level is None


@pytest.mark.parametrize("machine", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("disk", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("link", [1, 10, 100, 1000, 10_000])
def test_it_settles_near_the_best_there_is(link: float, disk: float, machine: float) -> None:
    at = model(link * MBIT, disk=disk, machine=machine)
    at.run(MEMORY)
    settled_at = at.present
    assert settled_at >= 0.75 * at.best
    at.run(4 * MEMORY)
    assert at.present >= 0.75 * at.best
    assert at.changes(3 * MEMORY) <= 3 * 2 * (len(LADDER) - 1)  # one look at each a MEMORY


def test_it_follows_a_link_whose_rate_steps() -> None:
    at = model(100 * MBIT)
    at.run(40)
    assert at.present >= 0.75 * at.best
    for link in (10, 1000, 100, 1000, 10):
        at.link = link * MBIT
        at.run(MEMORY + 20)
        assert at.present >= 0.75 * at.best, f"{link} Mbit/s"


def test_it_follows_a_disk_whose_content_changes() -> None:
    at = model(100 * MBIT)
    at.run(40)
    for disk in (0.0, 1.0, 0.0):
        at.disk = disk
        at.run(2 * MEMORY)
        assert at.present >= 0.75 * at.best


def test_raw_is_probed_only_when_the_link_is_known_and_only_now_and_then() -> None:
    controller = CompressionController("auto", CORES)
    assert {controller.next_level() for _ in range(3 * PROBE_INTERVAL)} == {None}
    at = Model(controller, 100 * MBIT, disk=0.0)
    at.run(2 * MEMORY)
    probes = [controller.next_level() for _ in range(4 * PROBE_INTERVAL)]
    assert sum(level is not None for level in probes) == 4


@pytest.mark.parametrize("policy", ["off", -5, 19])
def test_a_policy_is_obeyed_whatever_the_link_does(policy: str | int) -> None:
    controller = CompressionController(policy, CORES)  # type: ignore[arg-type]
    for _ in range(50):
        controller.note_window(10 * MIB, 10 * MIB, WINDOW, saturated=True)
        assert controller.next_level() == controller.level == (None if policy == "off" else policy)


NOTES = st.one_of(
    st.tuples(
        st.just("chunk"),
        st.integers(MIN_LEVEL, MAX_LEVEL),
        st.integers(1, MIB),
        st.integers(1, 2 * MIB),
        st.floats(0, 100),
    ),
    st.tuples(
        st.just("window"),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.floats(0, 1e6),
        st.booleans(),
    ),
)


@given(st.lists(NOTES, max_size=60))
def test_no_sequence_of_notes_raises_or_leaves_the_ladder(notes: list[tuple]) -> None:  # type: ignore[type-arg]
    controller = CompressionController("auto", CORES)
    for kind, *values in notes:
        if kind == "chunk":
            controller.note_chunk(*values)
        else:
            *counts, saturated = values
            controller.note_window(*counts, saturated=saturated)
        assert rung_of(controller.next_level()) in LADDER


def test_a_fast_link_is_not_helped_by_compression_that_has_no_cpu() -> None:
    scarce, plenty = CompressionController("auto", 2), CompressionController("auto", 2)
    for _ in range(3):
        scarce.note_window(150_000_000, 150_000_000, 0.25, saturated=True, cores=1.0)
        plenty.note_window(150_000_000, 150_000_000, 0.25, saturated=True, cores=2.0)
    assert scarce.level is None
    assert plenty.level is not None
