"""The controller on a model of machine, disk and link, in which it cannot see the truth."""

from itertools import pairwise

import pytest
from controlled_path import CORES, MBIT, MIB, Path
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_sender.compression import (
    FIRST,
    MAX_LEVEL,
    MIN_LEVEL,
    PROBE,
    PROBE_INTERVAL,
    CompressionController,
    Policy,
)
from flatship_sender.looks import Window
from flatship_sender.rungs import ALONE, WITH_HISTORY, Rung

STEPS = (100, 10, 1000, 50)  # Mbit/s
SETTLES = 5.0  # seconds


def full(wire: int, sent: int, seconds: float = 0.25, cores: float | None = None) -> Window:
    """A window in which the link held chunks up all the time."""
    return Window(seconds, wire, sent, held_up=seconds, cores=cores)


def after_its_first_chunks(policy: Policy = "auto", streams: int = 2) -> CompressionController:
    controller = CompressionController(policy, CORES)
    controller.grant(streams)
    for _ in range(FIRST):
        controller.next_rung()
    return controller


@pytest.mark.parametrize("ladder", [ALONE, WITH_HISTORY])
def test_each_rung_costs_more_than_the_one_before_and_yields_more(ladder: list[Rung]) -> None:
    assert all(a.speed > b.speed and a.ratio < b.ratio for a, b in pairwise(ladder))


def test_a_link_that_never_makes_chunks_wait_gets_them_raw() -> None:
    path = Path(link=40_000 * MBIT, source=300e6)
    path.run(20)
    assert {rung.level for _, rung in path.rungs} == {None}


def test_chunks_are_compressed_until_the_link_is_known_lest_they_clog_it() -> None:
    controller = CompressionController("auto", CORES)
    rungs = [controller.next_rung() for _ in range(FIRST + 5)]
    assert rungs == [PROBE] * FIRST + [ALONE[0]] * 5


def test_a_slow_link_gets_the_highest_level_within_seconds() -> None:
    path = Path(link=10 * MBIT)
    path.run(SETTLES)
    assert path.controller.rung == WITH_HISTORY[-1]


@pytest.mark.parametrize("machine", [0.4, 1.0])
@pytest.mark.parametrize("cores", [0.5, 2.0])
@pytest.mark.parametrize("link", [10, 50, 100, 300, 1000])
def test_it_settles_within_a_tenth_of_the_best_rung(
    link: float, cores: float, machine: float
) -> None:
    path = Path(link=link * MBIT, cores=cores, machine=machine)
    path.run(SETTLES)
    # Where others take most of the processors, it now and then tries whether they still do.
    assert path.run(20) >= (0.9 if cores == CORES else 0.85) * path.best


@pytest.mark.parametrize("streams", [0, 1])
def test_it_settles_where_the_receiver_grants_less(streams: int) -> None:
    path = Path(link=100 * MBIT, streams=streams)
    path.run(SETTLES)
    assert path.run(20) >= 0.85 * path.best
    assert path.controller.rung.history == (streams > 0)


@pytest.mark.parametrize("link", [30, 100, 300])
def test_compression_does_not_starve_the_link(link: float) -> None:
    path = Path(link=link * MBIT)
    path.run(SETTLES)
    before = path.wire
    path.run(30)
    assert path.wire - before >= 0.95 * 30 * path.link


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("machine", "cores"), [(1.0, 2.0), (0.4, 2.0), (1.0, 0.7)])
def test_it_follows_a_link_whose_rate_steps(seed: int, machine: float, cores: float) -> None:
    path = Path(link=STEPS[0] * MBIT, machine=machine, cores=cores, seed=seed)
    oracle = 0.0
    for rate in STEPS:
        path.link = rate * MBIT
        path.run(SETTLES)
        assert path.run(15) >= 0.85 * path.best, f"{rate} Mbit/s"
        oracle += 20 * path.best
    assert path.sent >= 0.8 * oracle  # most of it at 1000 Mbit/s, 2 s of which it takes to find out


def test_it_comes_back_from_a_high_level_when_processors_get_scarce() -> None:
    path = Path(link=10 * MBIT)
    path.run(10)
    path.cores = 0.3
    path.run(2 * SETTLES)
    assert path.run(20) >= 0.9 * path.best


def test_what_does_not_compress_goes_raw_and_what_does_after_it_does_not() -> None:
    path = Path(link=100 * MBIT)
    path.run(SETTLES)
    assert path.controller.rung.level is not None
    path.disk = 0.0
    path.run(10)
    assert path.controller.rung.level is None
    path.disk = 1.0
    path.run(10)
    assert path.run(10) >= 0.9 * path.best


def test_a_receiver_that_is_slower_than_the_link_is_not_compressed_for() -> None:
    path = Path(link=10_000 * MBIT, receiver=300e6)
    path.run(SETTLES)
    costly = [rung for _, rung in path.rungs if rung.history]
    assert path.run(40) >= 0.95 * 300e6
    assert len(costly) <= len(path.rungs) // 2


def test_a_change_that_brought_nothing_is_taken_back_and_not_tried_again_at_once() -> None:
    controller = after_its_first_chunks()
    raw = full(100_000_000, 100_000_000, cores=2.0)
    controller.note_window(raw)
    tried = controller.rung
    assert tried.level is not None
    for _ in range(2):  # the first shows what was before, too
        # As much of the disk as before, for the receiver takes no more.
        controller.note_window(full(int(100_000_000 / tried.ratio), 100_000_000, cores=2.0))
    assert controller.rung == ALONE[0]
    for _ in range(20):
        controller.note_window(raw)
    assert controller.rung == ALONE[0]


def test_a_slow_source_is_no_reason_to_compress_less() -> None:
    path = Path(link=100 * MBIT)
    path.run(SETTLES)
    before = path.controller.rung
    path.source = path.sent / path.now / 3
    path.run(20)
    assert path.controller.rung == before


def test_a_settled_controller_changes_little() -> None:
    path = Path(link=100 * MBIT)
    path.run(SETTLES)
    settled = len(path.rungs)
    path.run(60)
    changes = sum(a[1] != b[1] for a, b in pairwise(path.rungs[settled:]))
    assert changes <= 4


def test_raw_is_probed_only_when_the_link_is_known_and_only_now_and_then() -> None:
    controller = after_its_first_chunks()
    assert {controller.next_rung() for _ in range(3 * PROBE_INTERVAL)} == {ALONE[0]}
    for _ in range(200):
        controller.note_chunk(PROBE, MIB, MIB, 0.002)
    for _ in range(20):
        controller.note_window(full(4 * MIB, 4 * MIB))
    assert controller.rung == ALONE[0]
    probes = [controller.next_rung() for _ in range(4 * PROBE_INTERVAL)]
    assert probes.count(ALONE[1]) == 4  # what costs least to learn from


def test_a_link_on_which_not_one_chunk_has_gone_is_slow() -> None:
    controller = after_its_first_chunks()
    for _ in range(10):
        controller.note_window(full(0, 0))
    assert controller.rung == WITH_HISTORY[-1]


@pytest.mark.parametrize(
    ("policy", "history"), [("off", False), (-5, False), (1, True), (19, True)]
)
def test_a_policy_is_obeyed_whatever_the_link_does(policy: Policy, history: bool) -> None:
    controller = after_its_first_chunks(policy)
    for _ in range(50):
        controller.note_window(full(10 * MIB, 10 * MIB))
        rung = controller.next_rung()
        assert rung.level == (None if policy == "off" else policy)
        assert rung.history == history


def test_without_a_grant_no_chunk_is_part_of_a_stream() -> None:
    controller = after_its_first_chunks(9, streams=0)
    assert not controller.rung.history


def test_a_rung_with_history_is_left_when_the_next_session_grants_none() -> None:
    path = Path(link=10 * MBIT)
    path.run(SETTLES)
    assert path.controller.rung.history
    path.controller.grant(0)
    assert path.controller.rung == ALONE[-1]


def test_a_fast_link_is_not_helped_by_compression_that_has_no_cpu() -> None:
    scarce, plenty = after_its_first_chunks(), after_its_first_chunks()
    for _ in range(3):
        scarce.note_window(full(250_000_000, 250_000_000, cores=0.8))
        plenty.note_window(full(100_000_000, 100_000_000, cores=2.0))
    assert scarce.rung.level is None
    assert plenty.rung.level is not None


NOTES = st.one_of(
    st.tuples(
        st.just("chunk"),
        st.sampled_from([*WITH_HISTORY, Rung(MIN_LEVEL, 1e9, 1.5), Rung(MAX_LEVEL, 1e6, 5.0)]),
        st.integers(0, MIB),
        st.integers(0, 2 * MIB),
        st.floats(0, 100),
    ),
    st.builds(
        Window,
        st.floats(0, 1e6),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
        st.none() | st.floats(0, 1e6),
        st.none() | st.floats(0, 64),
    ),
)


@settings(deadline=None)
@given(st.lists(NOTES, max_size=60), st.sampled_from([0, 1, 2]))
def test_no_sequence_of_notes_raises_or_leaves_the_ladder(
    notes: list[Window | tuple],  # type: ignore[type-arg]
    streams: int,
) -> None:
    controller = after_its_first_chunks(streams=streams)
    for note in notes:
        if isinstance(note, Window):
            controller.note_window(note)
        else:
            controller.note_chunk(*note[1:])
        assert controller.next_rung() in (WITH_HISTORY if streams else ALONE)


@pytest.mark.parametrize(
    ("policy", "slow"), [("auto", False), ("off", False), (1, True), (9, True)]
)
def test_whoever_compresses_at_all_has_a_link_that_is_worth_sparing(
    policy: Policy, slow: bool
) -> None:
    assert CompressionController(policy, 2).link_is_slow is slow


@pytest.mark.parametrize("policy", ["auto", "off"])
@pytest.mark.parametrize(
    ("rate", "cores", "slow"),
    [(118, 2.0, True), (600, 2.0, True), (2000, 2.0, False), (300, 0.2, False)],
)
def test_a_full_link_is_slow_if_it_carries_less_than_processors_could_spare_it(
    policy: Policy, rate: int, cores: float, slow: bool
) -> None:
    controller = after_its_first_chunks(policy)
    for _ in range(12):
        sent = rate * MIB // 4
        controller.note_window(full(sent, sent, cores=cores))
    assert controller.link_is_known
    assert controller.link_is_slow is slow


def test_what_travels_beside_copies_is_compressed_unless_nothing_is_to_be() -> None:
    assert CompressionController("off", 2).level_beside_copies is None
    assert CompressionController("auto", 2).level_beside_copies == 3
