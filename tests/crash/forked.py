"""The programs as processes of their own that share the start of the interpreter.

A power cut is judged by the real daemon, started on what is left; a thousand cuts are not
to cost a thousand imports. So the programs are imported once and forked for each run. The
process that forks must have one thread.
"""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

# Imported here, so that no child need do it.
import aiohttp.web  # noqa: F401
import uvloop  # noqa: F401
from processes import RUN_TIMEOUT, CompletedRun, check_manners

import flatship_sender.daemon  # noqa: F401
from flatship_receiver.cli import main as receiver
from flatship_sender.cli import main as sender

__all__ = ["Forked", "receiver", "run_forked", "sender"]

_NAMES: Final = {receiver: "flatship-receiver", sender: "flatship-sender"}


class Forked:
    """A run of a program.

    Args:
        program: ``receiver`` or ``sender``.
        arguments: Its command line, without its name.
        output: Where standard output and standard error go: files ``output``.out and .err.
    """

    def __init__(
        self, program: Callable[[], None], arguments: tuple[str | Path, ...], output: Path
    ) -> None:
        self.command = (_NAMES[program], *map(str, arguments))
        self._out, self._err = output.with_suffix(".out"), output.with_suffix(".err")
        sys.stdout.flush()
        sys.stderr.flush()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._pid = os.fork()
            if self._pid == 0:
                self._become(program, out.fileno(), err.fileno())
        self._fd = os.pidfd_open(self._pid)
        self._exit_code: int | None = None

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._err.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._reap(0.0)

    def stop(self) -> None:
        """Ask it to end."""
        if not self.ended:
            signal.pidfd_send_signal(self._fd, signal.SIGTERM)

    def wait(self, timeout: float = RUN_TIMEOUT) -> CompletedRun:
        """Wait for its end and check its manners; one that does not end is a failure."""
        if not self._reap(timeout):
            self.kill()
            raise AssertionError(f"{' '.join(self.command)} still ran after {timeout:.0f} s")
        assert self._exit_code is not None
        out = self._out.read_text(errors="replace")
        return check_manners(CompletedRun(self.command, self._exit_code, out, self.stderr))

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if not self.ended:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            self._reap(RUN_TIMEOUT)

    def _reap(self, timeout: float) -> bool:
        if self._exit_code is None and select.select([self._fd], [], [], timeout)[0]:
            _, status = os.waitpid(self._pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
            os.close(self._fd)
        return self._exit_code is not None

    def _become(self, program: Callable[[], None], out: int, err: int) -> NoReturn:
        """The child: never returns into the code that forked it."""
        code = 70
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for ours, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
                os.dup2(ours, standard)
            sys.argv = list(self.command)
            try:
                program()
                code = 0
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else 1
            except BaseException:
                traceback.print_exc()
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            os._exit(code)


def run_forked(
    program: Callable[[], None], arguments: tuple[str | Path, ...], output: Path
) -> CompletedRun:
    """Run a program to its end."""
    return Forked(program, arguments, output).wait()
