"""Plays one schedule of kills with real processes, and holds the ends to their promises.

What must hold after each kill: whatever stands under a final name is a whole version of its
source; what the record held when a process came back is not sent again. At the end: the disks are
there, byte for byte, as cmp and qemu-img see it, and no log has a stack trace.
"""

import hashlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event
from typing import Final

from changing_source import Source
from disks import MIB, same_content
from faults import injected
from kill_schedules import Bytes, Commits, Kill, Schedule, Start, Victim, schedule
from processes import CompletedRun, Running, run_program
from record import Record, records
from stages import Stage, check_logs, same_to_qemu

from flatship_protocol.digest import chunk_digest
from flatship_receiver.journal import ImageState

PATIENCE: Final = 60.0  # seconds for anything that should happen at once
LOOK: Final = 0.003  # seconds between two looks
ATTEMPTS: Final = 12  # commands in a row that may end without all disks done
NOT_TRAFFIC: Final = 256 * 1024  # bytes beside chunks: handshakes, messages, record headers
RESENT: Final = 4 * MIB  # what was on its way on a lost connection goes again on another
HANDSHAKE: Final = 4096  # bytes that a session without any message does not exceed
LOST, TRY_AGAIN, BUSY, NOT_AUTHORISED = 3, 5, 11, 12


class Play:
    """One schedule under way.

    Args:
        stage: Where; its processes are left running.
        schedule: What is to happen.
        folder: For the sources.
    """

    def __init__(self, stage: Stage, schedule: Schedule, folder: Path) -> None:
        self.kills = 0
        self._schedule = schedule
        self._random = Random(f"content {schedule.seed}")
        self._receiver = stage.pair.receiver
        self._sender = stage.pair.sender
        self._toll = stage.toll
        self._vm = f"vm{schedule.seed}"
        self._live = schedule.live
        self._replace = schedule.replaces
        folder.mkdir(parents=True, exist_ok=True)
        self._sources = {
            self._vm + (f"_{number}" if number else ""): Source(
                folder / f"{self._vm}-{number}.raw", size, self._random
            )
            for number, size in enumerate(schedule.sizes)
        }
        self._sending: Running | None = None
        self._command: tuple[str | Path, ...] | None = None  # the one that was said to go on
        self._attempts = 0
        self._seen: dict[str, Record] | None = None  # on record when the sender was killed
        self._unaware = False  # a command may find published what it did not see published
        self._passed = self._toll.passed
        self._allowed = 0
        self._change_due = False
        self._old: bytes | None = None  # digest of the disk that stands there to be replaced

    def run(self) -> None:
        """Play it to its end.

        Raises:
            AssertionError: Something does not hold.
        """
        if self._schedule.replaces:
            self._put_old_disk()
        for kill in self._schedule.kills:
            if not self._until(kill):
                break
            self.kills += 1
            self._after(kill)
        else:
            self._complete()
        self._check_end()

    # Kills

    def _until(self, kill: Kill) -> bool:
        """Let things go on until ``kill`` has happened; False if all was done before."""
        moment, victim = kill.moment, kill.victim
        if (
            isinstance(moment, Start)
            and victim is Victim.RECEIVER
            and not self._receiver.is_running
        ):
            self._receiver.begin()
            time.sleep(moment.seconds)  # the moment to kill that the seed has drawn
            self._receiver.process.signal(signal.SIGKILL)
            return True
        self._serve()
        with self._armed(kill) as happened:
            deadline = time.monotonic() + PATIENCE
            while not happened():
                assert time.monotonic() < deadline, f"{kill} did not happen; {self._said()}"
                if self._sending is None:
                    self._send()
                elif self._sending.ended and not happened() and self._end_of_command():
                    return False
                time.sleep(LOOK)
        return True

    @contextmanager
    def _armed(self, kill: Kill) -> Iterator[Callable[[], bool]]:
        """See to it that ``kill`` happens; yields what tells whether it has."""
        moment = kill.moment
        struck = Event()

        def strike() -> None:
            victim = self._receiver.process if kill.victim is Victim.RECEIVER else self._sending
            if victim is not None:
                victim.signal(signal.SIGKILL)
                struck.set()

        def by_looking(due: Callable[[], bool]) -> Callable[[], bool]:
            def happened() -> bool:
                if due():
                    strike()
                return struck.is_set()

            return happened

        with ExitStack() as cleanup:
            if isinstance(moment, Bytes):
                self._toll.at(int(moment.part * sum(self._schedule.sizes)), strike)
                cleanup.callback(self._toll.forget)
                yield struck.is_set
            elif isinstance(moment, Start):
                at = time.monotonic() + moment.seconds
                yield by_looking(lambda: self._sending is not None and time.monotonic() >= at)
            elif isinstance(moment, Commits):
                yield by_looking(_Commits(self._receiver.state, moment.count))
            else:
                fault = f"signal=KILL:when={moment.number}"
                victim = self._receiver.process
                with injected(victim.pid, moment.name, fault):
                    yield lambda: victim.ended

    def _after(self, kill: Kill) -> None:
        """What must hold when one end is gone; and what is to happen before the next command."""
        self._change_due |= kill.changes
        if kill.victim is Victim.SENDER:
            assert self._sending is not None
            self._sending.kill()
            self._sending = None
            self._unaware = True
            self._seen = self._look()
            self._check_standing()
            return
        self._receiver.kill()
        self._check_standing()
        if self._sending is not None and not self._schedule.patient:
            self._end_of_command()
        if self._sending is not None:
            self._reckon(self._look(), typed=False)

    # Commands

    def _serve(self) -> None:
        if not self._receiver.is_running:
            self._receiver.start()

    def _send(self) -> None:
        """Type the command, or the one that the last command said to go on with."""
        seen, self._seen = self._seen or self._look(), None
        if self._change_due:
            self._change_due = False
            seen = {name: _lasting(record, self._sources[name]) for name, record in seen.items()}
            for source in self._sources.values():
                source.change()
        for source in self._sources.values():
            source.note()
        self._attempts += 1
        assert self._attempts <= ATTEMPTS, f"{ATTEMPTS} commands were not enough"
        self._reckon(seen, typed=True)
        options = [*self._schedule.options, *(["--live"] if self._live else [])]
        if self._replace and "--replace" not in options:
            options += ["--replace"]
        paths = [source.path for source in self._sources.values()]
        command = self._sender.send_command(*paths, vm=self._vm, options=options, to="proxy")
        told, self._command = self._command, None
        self._sending = self._sender.start_command(told or command)

    def _end_of_command(self) -> bool:
        """Judge how the command ended by itself; returns whether all is done."""
        assert self._sending is not None
        run, self._sending = self._sending.wait(PATIENCE), None
        self._within_allowance()
        if run.exit_code == 0:
            done, self._live = not self._live, False
            return done
        if run.exit_code == NOT_AUTHORISED:  # the receiver died in the middle of the handshake
            assert self._toll.passed - self._passed < HANDSHAKE, str(run)
            return False
        assert run.exit_code in {LOST, TRY_AGAIN, BUSY}, str(run)
        if run.exit_code == LOST:
            told = tuple(shlex.split(run.error.split("to go on where it stopped, run: ")[1]))
            assert told == tuple(str(word) for word in run.command), str(run)
            if not self._change_due and "--live" not in told:
                self._command = told
        elif run.exit_code == BUSY:
            self._exists(run)
            return self._is_done()
        return False

    def _exists(self, run: CompletedRun) -> None:
        """Published before, which the command that was typed anew did not know."""
        assert self._unaware or not self._schedule.patient, str(run)
        codes = {disk["error"]["code"] for disk in run.disks if disk["error"]}
        assert codes <= {"disk_exists", "disk_busy"}, str(run)
        self._replace = "disk_exists" in codes and not self._is_done()

    def _is_done(self) -> bool:
        return all(
            self._receiver.descriptor(self._vm, name).exists()
            and same_content(source.path, self._receiver.flat(self._vm, name), source.size)
            for name, source in self._sources.items()
        )

    # What must hold

    def _check_standing(self) -> None:
        """Whatever stands under a final name is one whole version of its source."""
        for name, source in self._sources.items():
            with suppress(_Exchanged):
                digest = _digest_of(self._receiver.descriptor(self._vm, name), source.size)
                known = source.versions | {self._old}
                assert digest is None or digest in known, f"{name} is no version of its source"

    def _look(self) -> dict[str, Record]:
        return records(self._receiver.state, self._vm, list(self._sources))

    def _reckon(self, seen: dict[str, Record], *, typed: bool) -> None:
        """From now on no more may pass than what is not on record, or is another on record."""
        self._within_allowance()
        self._passed = self._toll.passed
        self._allowed = sum(
            self._may_pass(seen.get(name), source, typed=typed)
            for name, source in self._sources.items()
        )

    def _may_pass(self, record: Record | None, source: Source, *, typed: bool) -> int:
        if record is None or record.size != source.size or record.state is ImageState.DISCARDED:
            return source.size
        if typed and (self._replace or record.state is not ImageState.RECEIVING):
            return source.size  # it may be published, and be replaced
        return sum(
            len(data)
            for index, data in enumerate(source.chunks())
            if data.strip(b"\0") and record.held.get(index) != chunk_digest(data)
        )

    def _within_allowance(self) -> None:
        passed = self._toll.passed - self._passed
        limit = self._allowed + self._allowed // 100 + NOT_TRAFFIC + RESENT
        assert passed <= limit, f"{passed} bytes passed, {self._allowed} were not on record"

    def _complete(self) -> None:
        """The faults have stopped: now it completes."""
        self._serve()
        deadline = time.monotonic() + PATIENCE
        while True:
            if self._sending is None:
                self._send()
            assert self._sending is not None
            if self._end_of_command():
                break
            assert time.monotonic() < deadline, "it does not come to an end"

    def _check_end(self) -> None:
        """All is there, byte for byte, and nothing beside it."""
        for name, source in self._sources.items():
            descriptor = self._receiver.descriptor(self._vm, name)
            flat = self._receiver.flat(self._vm, name)
            assert same_content(source.path, flat, source.size), f"{name} differs"
            same_to_qemu(source.path, descriptor)
        expected = [
            file for name in self._sources for file in (f"{name}-flat.vmdk", f"{name}.vmdk")
        ]
        assert self._receiver.files(self._vm) == sorted(expected)
        check_logs(self._receiver)

    def _said(self) -> str:
        sender = self._sending.stderr if self._sending is not None else ""
        return f"receiver: {self._receiver.log}\nsender: {sender}"

    def _put_old_disk(self) -> None:
        path = self._receiver.descriptor(self._vm)
        path.parent.mkdir()
        layout = ("-o", "subformat=monolithicFlat", path, "3M")
        run_program("qemu-img", "create", "-q", "-f", "vmdk", *layout).expect(0)
        flat = self._receiver.flat(self._vm)
        flat.write_bytes(self._random.randbytes(3 * MIB))
        self._old = _digest_of(path, self._schedule.sizes[0])


class _Commits:
    """Whether the journal's log has changed so often since this was made."""

    def __init__(self, state: Path, count: int) -> None:
        self._log = state / "journal.db-wal"
        self._left = count
        self._seen = self._look()

    def __call__(self) -> bool:
        now = self._look()
        if now != self._seen:
            self._seen = now
            self._left -= 1
        return self._left <= 0

    def _look(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._log)
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns


class _Exchanged(Exception):
    """The descriptor was exchanged while it was read: its receiver is alive and publishing."""


def _lasting(record: Record, source: Source) -> Record:
    """What a command that sends ``source`` leaves on record: it lets go of what differs."""
    chunks = source.chunks()
    return replace(
        record,
        held={
            index: digest
            for index, digest in record.held.items()
            if digest is None or digest == chunk_digest(chunks[index])
        },
    )


def _digest_of(descriptor: Path, size: int) -> bytes | None:
    """SHA-256 of the first ``size`` bytes of what a descriptor describes; None without one."""
    try:
        before = descriptor.stat()
        extents = re.findall(
            r'^RW \d+ (?:VMFS|FLAT) "([^"]+)"', descriptor.read_text(), re.MULTILINE
        )
        assert extents, f"{descriptor} describes nothing"
        data = b"".join((descriptor.parent / name).read_bytes() for name in extents)
    except FileNotFoundError:
        if descriptor.exists():
            raise
        return None
    if not descriptor.exists() or descriptor.stat().st_ino != before.st_ino:
        raise _Exchanged
    return hashlib.sha256(data[:size]).digest()


def play(stage: Stage, seed: int) -> int:
    """Play what ``seed`` means; returns how many were killed.

    Raises:
        AssertionError: Something does not hold.
    """
    playing = Play(stage, schedule(seed), stage.folder / "sources")
    playing.run()
    return playing.kills
