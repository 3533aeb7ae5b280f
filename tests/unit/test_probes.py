"""Probes are counted for each connection, and bounded for the session."""

import weakref

import pytest

from flatship_protocol.constants import MAX_PROBE_BYTES, MAX_PROBE_FILLER, MAX_PROBE_SECONDS
from flatship_protocol.errors import UnexpectedMessage
from flatship_protocol.messages import Probe, Probed
from flatship_receiver.probes import Probes

FULL = Probe(MAX_PROBE_FILLER)


def test_reports_count_what_came_on_their_connection_by_one_clock() -> None:
    probes = Probes()
    assert probes.take("a", Probe(44), 10.0) is None
    assert probes.take("b", Probe(0, report=True), 10.5) == Probed(56, 10_500_000)
    assert probes.take("a", Probe(0, report=True), 11.0) == Probed(156, 11_000_000)


def test_probes_beyond_the_bytes_of_a_session_are_refused_on_whichever_connection() -> None:
    probes = Probes()
    for number in range(MAX_PROBE_BYTES // FULL.record_size):
        probes.take(number % 4, FULL, 0.0)
    with pytest.raises(UnexpectedMessage, match="536870912 bytes"):
        probes.take("another", FULL, 0.0)


def test_probes_come_to_an_end_after_the_time_that_a_session_has_for_them() -> None:
    probes = Probes()
    probes.take("a", Probe(0), 5.0)
    probes.take("a", Probe(0), 5.0 + MAX_PROBE_SECONDS)
    with pytest.raises(UnexpectedMessage, match="30 s after"):
        probes.take("b", Probe(0), 5.1 + MAX_PROBE_SECONDS)


def test_a_connection_that_is_gone_is_not_kept_and_what_came_there_counts() -> None:
    class Link:
        """Something to be kept, or not."""

    probes, link = Probes(), Link()
    kept = weakref.ref(link)
    for _ in range(MAX_PROBE_BYTES // FULL.record_size):
        probes.take(link, FULL, 0.0)
    probes.forget(link)
    probes.forget("one without probes")
    del link
    assert kept() is None
    with pytest.raises(UnexpectedMessage, match="536870912 bytes"):
        probes.take("another", FULL, 0.0)
