"""The segments of a chunk: which of its pages travel, which are zeros, which stay as they are."""

from itertools import groupby
from typing import Final

from flatship_protocol.constants import PAGE_SIZE
from flatship_protocol.messages import Segment, SegmentKind
from flatship_sender.fingerprints import runs
from flatship_sender.zeros import zero_runs

MIN_ZERO_RUN: Final = 4  # pages; shorter runs of zeros travel, and are written, as data


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


def patch(data: memoryview, changed: list[int]) -> tuple[Segment, ...]:
    """The segments of a chunk of which the receiver keeps all but the ``changed`` pages."""
    kinds = [SegmentKind.KEEP] * -(-len(data) // PAGE_SIZE)
    for number in changed:
        kinds[number] = SegmentKind.LITERAL
    zeros = {page for first, count in zero_runs(data) for page in range(first, first + count)}
    for first, count in runs([number for number in changed if number in zeros]):
        if count >= MIN_ZERO_RUN:
            kinds[first : first + count] = [SegmentKind.ZERO] * count
    return tuple(Segment(kind, len(list(run))) for kind, run in groupby(kinds))


def gather(data: memoryview, segments: tuple[Segment, ...]) -> tuple[int, int]:
    """Move the literal runs together at the start of ``data``.

    Returns:
        Bytes of the literal runs, and of those that the receiver keeps.
    """
    if not segments:
        return len(data), 0
    source = target = kept = 0
    for segment in segments:
        length = min(segment.pages * PAGE_SIZE, len(data) - source)
        if segment.kind is SegmentKind.LITERAL:
            data[target : target + length] = data[source : source + length]
            target += length
        elif segment.kind is SegmentKind.KEEP:
            kept += length
        source += length
    return target, kept
