"""The segments of a chunk: which of its pages travel, and which the receiver has or can make."""

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.messages import Segment, SegmentKind
from flatship_sender.copies import Copy
from flatship_sender.fingerprints import runs
from flatship_sender.zeros import zero_runs

MIN_ZERO_RUN: Final = 4  # pages; shorter runs of zeros travel, and are written, as data
_PAGES: Final = CHUNK_SIZE // PAGE_SIZE
_EVERY_OTHER: Final = sum(1 << page for page in range(0, _PAGES, 2))
_FEW: Final = sum(1 << page for page in range(0, _PAGES, 16))  # of those that are copied


def whole(data: memoryview) -> tuple[Segment, ...]:
    """The literal and zero runs of a chunk; empty when all of it is literal."""
    zeros = [run for run in zero_runs(data) if run[1] >= MIN_ZERO_RUN]
    if not zeros:
        return ()
    pages = -(-len(data) // PAGE_SIZE)
    segments: list[Segment] = []
    position = 0
    for first, count in zeros:
        if first > position:
            segments.append(Segment(SegmentKind.LITERAL, first - position))
        segments.append(Segment(SegmentKind.ZERO, count))
        position = first + count
    if position < pages:
        segments.append(Segment(SegmentKind.LITERAL, pages - position))
    return tuple(segments)


def page_kinds(
    count: int, zeros: Sequence[tuple[int, int]], changed: Collection[int] | None
) -> list[SegmentKind]:
    """What becomes of each page, without copies.

    Args:
        count: How many pages the chunk has.
        zeros: Runs of zero pages: first, count.
        changed: Those that the receiver cannot keep; None if it can keep none.
    """
    literal = range(count) if changed is None else changed
    kinds = [SegmentKind.KEEP] * count
    for number in literal:
        kinds[number] = SegmentKind.LITERAL
    # Of a run of zeros a part may be kept: what is left of it is to be long enough.
    travel = [
        page
        for first, length in zeros
        for page in range(first, first + length)
        if kinds[page] is SegmentKind.LITERAL
    ]
    for first, length in runs(travel):
        if length >= MIN_ZERO_RUN:
            kinds[first : first + length] = [SegmentKind.ZERO] * length
    return kinds


def segments(kinds: Sequence[SegmentKind], copies: Sequence[Copy] = ()) -> tuple[Segment, ...]:
    """The segments of a chunk whose pages are of these kinds, but for those that are copied."""
    made: list[Segment] = []
    position = 0
    for copy in copies:
        found = copy.found
        made.extend(_runs(kinds[position : found.first]))
        made.append(
            Segment(SegmentKind.COPY, found.count, copy.reference, found.source * PAGE_SIZE)
        )
        position = found.first + found.count
    made.extend(_runs(kinds[position:]))
    return () if [each.kind for each in made] == [SegmentKind.LITERAL] else tuple(made)


def anchors(
    kinds: Sequence[SegmentKind],
    copies: Sequence[Copy],
    zeros: Sequence[tuple[int, int]],
    before: int,
) -> int:
    """Which pages are to be found by their content: a bit for each, the first one lowest.

    Args:
        kinds: Of the pages.
        copies: Runs of them that are copied.
        zeros: Runs of them that are zero.
        before: Those that were anchors when the receiver got the pages that it keeps.
    """
    every_other = _EVERY_OTHER & _of_kind(kinds, SegmentKind.LITERAL)
    for first, count in zeros:
        every_other &= ~_bits(first, count)
    for copy in copies:
        run = _bits(copy.found.first, copy.found.count)
        every_other = every_other & ~run | _FEW & run
    return every_other | before & _of_kind(kinds, SegmentKind.KEEP)


def gather(data: memoryview, segments: tuple[Segment, ...]) -> dict[SegmentKind, int]:
    """Move the literal runs together at the start of ``data``.

    Returns:
        Bytes of the runs of each kind; of those that do not occur, nothing.
    """
    if not segments:
        return {SegmentKind.LITERAL: len(data)}
    source = target = 0
    sizes: dict[SegmentKind, int] = {}
    for segment in segments:
        length = min(segment.pages * PAGE_SIZE, len(data) - source)
        if segment.kind is SegmentKind.LITERAL:
            data[target : target + length] = data[source : source + length]
            target += length
        sizes[segment.kind] = sizes.get(segment.kind, 0) + length
        source += length
    return sizes


def _runs(kinds: Sequence[SegmentKind]) -> list[Segment]:
    return [Segment(kind, len(list(run))) for kind, run in groupby(kinds)]


def _of_kind(kinds: Sequence[SegmentKind], kind: SegmentKind) -> int:
    """A bit for each page of a kind, the first one lowest."""
    return int("".join(["1" if each is kind else "0" for each in reversed(kinds)]), 2)


def _bits(first: int, count: int) -> int:
    return ((1 << count) - 1) << first
