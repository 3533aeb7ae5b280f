"""Whether a device on which the power failed holds what was promised.

The file systems are mounted, which has the kernel recover them; the receiver is started on
them and stopped; what it was told or says it has is compared with the source.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from processes import STOP_TIMEOUT, CompletedRun, run_program, wait_until

from crash.device import MountRefused, mount_copy, unmount
from crash.forked import Forked, receiver, run_forked, sender
from crash.power_cut import Medium, PowerCut
from crash.promises import Promise, promise_at
from crash.recording import Layout, Recording, write_source
from crash.remains import Remains, Standing, Violation
from crash.steps import CHUNKS, VM, Step
from flatship_protocol.errors import TransferError
from flatship_receiver.descriptor_text import DescriptorError

__all__ = ["Judge", "Violation"]

_UNFINISHED: Final = re.compile(r"\.flatship-(proven|replacing|old)$")


class Judge:
    """Judges states of one recording, in the order of the log.

    Args:
        recording: What was logged.
        layout: What is on the device.
        steps: The commands.
        folder: Where states are kept for as long as they are judged; in memory, for speed.
    """

    def __init__(
        self, recording: Recording, layout: Layout, steps: Sequence[Step], folder: Path
    ) -> None:
        self._recording = recording
        self._layout = layout
        self._steps = steps
        self._folder = folder
        self._image = folder / "image"
        self._mounted = folder / "mounted"
        self._mounted.mkdir(parents=True)
        self._medium = Medium(
            recording.log, recording.entries, folder / "durable", layout.size, layout.kind.atom
        )
        self._state = layout.state(self._mounted)
        self._output = folder / "command"
        self._remains = Remains(layout.datastore(self._mounted), self._state, steps)

    def close(self) -> None:
        """Remove what is kept."""
        self._medium.close()

    def check_log(self) -> None:
        """Assert that the log, replayed to its end, is all that the device holds; comes last."""
        self._medium.write_state(PowerCut(len(self._recording.entries)), self._image)
        run_program("cmp", self._recording.content, self._image).expect(0)
        self._image.unlink()

    def what_had_happened(self, cut: PowerCut) -> str:
        """The step that had begun, for people."""
        promise = promise_at(cut.at, self._recording.events, self._steps)
        if promise.step < 0:
            return "before the first step"
        when = "after" if promise.proven else "in"
        return f"{when} step {promise.step}, {self._steps[promise.step].name}"

    def judge(self, cut: PowerCut, *, go_on: bool) -> None:
        """Let the power fail, and look.

        Args:
            cut: Where and how.
            go_on: Run the command again as well, to its end.

        Raises:
            Violation: With what was promised and what was found.
        """
        promise = promise_at(cut.at, self._recording.events, self._steps)
        self._medium.write_state(cut, self._image)
        try:
            for name, offset in self._layout.parts:
                mount_copy(self._layout.kind, self._image, offset, self._mounted / name)
            self._look(promise)
            if go_on:
                self._go_on(promise)
        except MountRefused as error:
            raise Violation(f"the file system is lost: {error}") from error
        except (AssertionError, TransferError, DescriptorError, OSError) as error:
            raise Violation(str(error)) from error  # a program did not behave, or cannot read
        finally:
            for name, _ in self._layout.parts:
                unmount(self._mounted / name)
            self._image.unlink()

    def _look(self, promise: Promise) -> None:
        remains = self._remains
        _check_standing("as it was found", remains.standing(), promise.standing | {None})
        self._recover()
        standing = remains.standing()
        _check_standing("after recovery", standing, promise.standing)
        left = [name for name in remains.names() if _UNFINISHED.search(name)]
        if left:
            raise Violation(f"after recovery {left} are left")
        run_forked(receiver, ("list", "--json", "--state", self._state), self._output).expect(0)
        complete, held = remains.check_journal()
        if complete != ([standing.uuid] if standing else []):
            raise Violation(f"the journal has {len(complete)} complete disks, not what stands")
        if standing and promise.step in standing.steps:
            return  # all that was acknowledged is part of it
        for chunk, by in promise.acked.items():
            if chunk not in held:
                raise Violation(f"chunk {chunk} was acknowledged and is not on record")
            if remains.part_chunk(chunk) != self._steps[by].chunk(chunk):
                raise Violation(f"chunk {chunk} was acknowledged and is not on the medium")

    def _recover(self) -> None:
        """Start the receiver, and stop it as soon as it listens."""
        run = self._serve()
        run.stop()
        self._check_log(run.wait(STOP_TIMEOUT).expect(0))

    def _serve(self) -> Forked:
        arguments: tuple[str | Path, ...] = (
            *("serve", "--state", self._state, "--http", "127.0.0.1:0"),
            *("--listen", self._recording.address),
            *("--datastore", f"ds={self._layout.datastore(self._mounted)}"),
        )
        run = Forked(receiver, arguments, self._folder / "receiver")
        try:
            wait_until(lambda: run.ended or "listening on" in run.stderr, "the receiver listens")
            if run.ended:
                run.wait().expect(0)
        except BaseException:
            run.kill()
            raise
        return run

    def _check_log(self, run: CompletedRun) -> None:
        errors = [line for line in run.stderr.splitlines() if "level=error" in line]
        if errors:
            raise Violation(f"the receiver complains: {errors}")

    def _go_on(self, promise: Promise) -> None:
        """Run the command again that was under way, or the next one, to its end."""
        number = promise.step + (promise.proven or promise.step < 0)
        if number == len(self._steps):
            return
        step, before = self._steps[number], self._remains.standing()
        write_source(self._recording.source, step)
        state = self._folder / "sender"
        shutil.copytree(self._recording.sender, state)
        serving = self._serve()
        try:
            arguments: tuple[str | Path, ...] = (
                *("send", "--to", "esx", "--vm", VM, "--json", "--patience", "0"),
                *step.options,
                *("--state", state),
                self._recording.source,
            )
            run = run_forked(sender, arguments, self._output)
        finally:
            serving.stop()
            serving.wait(STOP_TIMEOUT)
            shutil.rmtree(state)
        self._check_log(serving.wait())
        # Published, and the last word lost: who types the command anew is told so.
        stood = before is not None and number in before.steps
        run.expect(11 if stood and "--replace" not in step.options else 0)
        if not stood:
            self._check_sent(run, promise, step)
        after = self._remains.standing()
        if step.may_publish:
            _check_standing("after the command was run again", after, frozenset({number}))
        elif after != before:
            raise Violation("a live pass changed what stands")

    def _check_sent(self, run: CompletedRun, promise: Promise, step: Step) -> None:
        """Nothing comes again that was acknowledged and has not changed."""
        acked = {
            chunk
            for chunk, by in promise.acked.items()
            if self._steps[by].chunk(chunk) == step.chunk(chunk)
        }
        most = sum(
            len(step.chunk(chunk))
            for chunk in range(CHUNKS)
            if chunk not in acked and step.chunk(chunk).strip(b"\0")
        )
        # What was to be copied from elsewhere may be wanted whole, and is then sent a second time.
        sent = run.disk["bytes"]["sent"] - run.disk["bytes"]["wanted"]
        if sent > most:
            raise Violation(f"{sent} bytes were sent again, {most} were missing")


def _check_standing(when: str, found: Standing | None, allowed: frozenset[int | None]) -> None:
    if not allowed & (found.steps if found else {None}):
        said = f"that of steps {sorted(found.steps)}" if found else "none"
        named = sorted("none" if step is None else str(step) for step in allowed)
        raise Violation(f"{when} the disk is {said}, allowed: {', '.join(named)}")
