"""One job of the daemon's, in a process of its own, so that what hangs takes nobody with it.

It gets a ``Task`` on one line of standard input, and leaves in good order when that ends: the
daemon wants it to, or is gone. It writes a ``Report`` a line to standard output, one a second at
most, and the last one with what came of it. What else it has to say goes to standard error.

Whoever starts it holds a lock for it, on a descriptor that it inherits and never looks at.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.errors import ErrorCode, TransferError, UsageError
from flatship_sender.claims import AlreadySending
from flatship_sender.daemon import send
from flatship_sender.display import LOG_INTERVAL
from flatship_sender.order import Order, options_of, target_of
from flatship_sender.pass_words import DoesNotConverge
from flatship_sender.progress import TransferProgress
from flatship_sender.queue.model import Task
from flatship_sender.receivers import Receivers
from flatship_sender.refusals import TRY_AGAIN
from flatship_sender.results import SendResult, from_progress
from flatship_sender.snapshot import Snapshot, take
from flatship_sender.worker_reports import Report, WorkerOutcome
from flatship_service import __version__
from flatship_service.cli import FAILED, INTERRUPTED, tell
from flatship_service.congestion import check_congestion_control
from flatship_service.errors import OperatorError
from flatship_service.keys import load_or_create_identity
from flatship_service.printable import as_unicode

INCOMPLETE: Final = 3  # the same command goes on where it stopped
WORTH_IT: Final = (INCOMPLETE, TRY_AGAIN)
PARENT_GONE: Final = 15.0  # seconds to leave in; a session's goodbye takes 7 at most


class Reporter:
    """Shows a transfer to the daemon, as a ``Display``, and counts its errors, as an ``Observer``.

    Lines are written by a thread, which has the newest one alone: a daemon that does not read
    holds up no transfer.

    Args:
        descriptor: Where they go.
    """

    interval = LOG_INTERVAL

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._errors: Counter[str] = Counter()
        self._snapshot: Snapshot | None = None
        self._line: bytes | None = None
        self._last = False
        self._change = threading.Condition()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def show(self, progress: TransferProgress, now: float) -> None:
        """Report how things stand."""
        self._snapshot = take(progress, now)
        self._put(Report(snapshot=self._snapshot, errors=dict(self._errors)))

    def close(self) -> None:
        """Do nothing: the outcome is still to come."""

    def observe_ack(self, seconds: float) -> None:
        """See Observer."""

    def error(self, error: BaseException) -> None:
        """See Observer."""
        code = error.code if isinstance(error, TransferError) else ErrorCode.INTERNAL
        self._errors[code.name.lower()] += 1

    def conclude(self, outcome: WorkerOutcome) -> None:
        """Report the end, and wait until that is written or nobody is there to read it."""
        self._put(Report(snapshot=self._snapshot, errors=dict(self._errors), outcome=outcome), True)
        self._writer.join()

    def _put(self, report: Report, last: bool = False) -> None:
        line = msgspec.json.encode(report) + b"\n"
        with self._change:
            self._line, self._last = line, last
            self._change.notify()

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._line is not None)
                line, self._line, last = self._line or b"", None, self._last
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                return  # the daemon is gone, and standard input says so
            if last:
                return


def run(task: Task, reporter: Reporter) -> WorkerOutcome:
    """Send what a task asks for; whatever goes wrong is in the outcome.

    Another worker may do better where the same command would, and where somebody else is at it
    now: a command, or the receiver with what an earlier worker has left.
    """
    try:
        outcome = send(_order(task), reporter, __version__, reporter)
    except (TransferError, OperatorError) as error:
        reporter.error(error)  # before there was a session, which would have told of it
        return _failed(error, None)
    result = from_progress(outcome.progress)
    if outcome.failure is not None:
        return _failed(outcome.failure, result)
    failed = next((disk for disk in outcome.progress.disks if disk.exit_code), None)
    if failed is None:
        return WorkerOutcome(exit_code=0, again=False, message=None, result=result)
    return WorkerOutcome(
        exit_code=failed.exit_code,
        again=failed.exit_code in WORTH_IT or failed.error_code is ErrorCode.DISK_BUSY,
        message=as_unicode(f"{failed.target}: {failed.error}"),
        result=result,
    )


def main() -> None:
    """The process."""
    # Who has no terminal does not leave for one; the daemon's own comes here otherwise.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    reporter = Reporter(sys.stdout.fileno())
    try:
        outcome = run(msgspec.json.decode(line, type=Task), reporter)
    except Exception as error:  # it is to be in the job's record, and not in a log alone
        tell(f"internal error: {type(error).__name__}: {error}")
        outcome = _failed(error, None)
    reporter.conclude(outcome)
    sys.exit(outcome.exit_code)


def _order(task: Task) -> Order:
    spec, work, state = task.spec, task.spec.work(), Path(task.state)
    if spec.congestion_control is not None:
        try:
            check_congestion_control(spec.congestion_control)
        except ValueError as error:
            raise UsageError(f"congestion control {error}") from None
    return Order(
        spec.named_sources(),
        Receivers(state).load(spec.receiver),
        load_or_create_identity(state),
        state,
        target_of(work),
        options_of(work, in_doubt=task.in_doubt),
        f"flatship-sender resume {task.job}",
        None if task.config is None else Path(task.config),
    )


def _failed(error: Exception, result: SendResult | None) -> WorkerOutcome:
    exit_code = int(getattr(error, "exit_code", FAILED))
    return WorkerOutcome(
        exit_code=exit_code,
        again=isinstance(error, AlreadySending)
        or (exit_code in WORTH_IT and not isinstance(error, DoesNotConverge)),
        message=as_unicode(str(error)),
        result=result,
    )


def _leave_with_parent() -> None:
    """Leave as at SIGTERM once standard input ends, and without ado if that takes too long."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PARENT_GONE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
