"""What must be found after the power failed at a place in the log. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from crash.events import Begun, Event, Proven, Stored
from crash.steps import Step, chunks_of


@dataclass(frozen=True, slots=True)
class Promise:
    """What holds at one place.

    Args:
        standing: The steps whose disk may stand under its name; None is no disk.
        step: The step that had begun last.
        proven: Whether the receiver had said that it is done with that step.
        acked: For chunks of the disk that is not published yet: the step whose content was
            acknowledged last, and is that of the source still.
    """

    standing: frozenset[int | None]
    step: int
    proven: bool
    acked: dict[int, int]


def promise_at(position: int, events: Sequence[Event], steps: Sequence[Step]) -> Promise:
    """Go through what had happened by then.

    A step's ``at`` lies a little before its beginning, a promise's not after the flush that
    keeps it: neither asks too much.
    """
    standing: frozenset[int | None] = frozenset({None})
    step, proven, acked = -1, False, dict[int, int]()
    for event in events:
        if event.at > position:
            break
        match event:
            case Begun():
                step, proven = event.step, False
                if steps[step].may_publish:
                    standing |= {step}
                # What differs may be on its way already, and is no promise any more.
                acked = {
                    chunk: by
                    for chunk, by in acked.items()
                    if steps[by].chunk(chunk) == steps[step].chunk(chunk)
                }
            case Stored():
                acked |= dict.fromkeys(chunks_of(event.ranges), step)
            case Proven():
                proven = True
                if event.published:
                    standing, acked = frozenset({step}), {}
    return Promise(standing, step, proven, acked)
