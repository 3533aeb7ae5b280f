"""How a job gets from one state to another, and who may see to it. Pure.

An operator's word on a running job is a wish (``Job.wanted``) until its worker has left: what
the worker brought to its end meanwhile counts. A job ends once, so final states have no way out.
What failed is submitted anew, and is a job of its own.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from flatship_protocol.errors import TransferError
from flatship_sender.queue.model import JobState
from flatship_sender.refusals import BUSY


class Who(Enum):
    """Who makes a transition."""

    OPERATOR = "operator"
    DAEMON = "daemon"


_OPERATOR: Final = frozenset({Who.OPERATOR})
_DAEMON: Final = frozenset({Who.DAEMON})

# A missing entry is a WrongState.
TRANSITIONS: Final[Mapping[JobState, Mapping[JobState, frozenset[Who]]]] = {
    JobState.QUEUED: {
        JobState.RUNNING: _DAEMON,
        JobState.PAUSED: _OPERATOR,
        JobState.CANCELLED: _OPERATOR,
    },
    JobState.RUNNING: {
        JobState.DONE: _DAEMON,
        JobState.FAILED: _DAEMON,
        JobState.WAITING: _DAEMON,
        JobState.QUEUED: _DAEMON,  # the daemon leaves, or left it behind when it died
        JobState.PAUSED: _DAEMON,  # its worker has left, as was wanted
        JobState.CANCELLED: _DAEMON,
    },
    JobState.WAITING: {
        JobState.RUNNING: _DAEMON,
        JobState.QUEUED: _OPERATOR,  # not to wait any longer
        JobState.PAUSED: _OPERATOR,
        JobState.CANCELLED: _OPERATOR,
    },
    JobState.PAUSED: {
        JobState.QUEUED: _OPERATOR,
        JobState.CANCELLED: _OPERATOR,
    },
    JobState.DONE: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
}

FINAL: Final = frozenset(state for state, ways in TRANSITIONS.items() if not ways)
MAY_START: Final = frozenset(
    state for state, ways in TRANSITIONS.items() if JobState.RUNNING in ways
)


class WrongState(TransferError):
    """What was asked for cannot be done to a job that is in its state; nothing has changed.

    Args:
        job: Its number.
        state: The one it is in.
        to: The one it was to get to.
    """

    exit_code = BUSY

    def __init__(self, job: int, state: JobState, to: JobState) -> None:
        if state in FINAL:
            advice = "it has ended; submit it anew"
        else:
            known = [target.value for target, who in TRANSITIONS[state].items() if who & _OPERATOR]
            advice = f"from here it can become {' or '.join(known)}" if known else "wait for it"
        super().__init__(f"job {job} is {state.value} and cannot become {to.value}: {advice}")


def check(job: int, state: JobState, to: JobState, who: Who) -> None:
    """Refuse what the table does not allow.

    Raises:
        WrongState: It does not.
    """
    if who not in TRANSITIONS[state].get(to, frozenset()):
        raise WrongState(job, state, to)
