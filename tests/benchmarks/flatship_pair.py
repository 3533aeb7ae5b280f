"""Flatship as a contestant: both programs as real processes, paired afresh for every transfer."""

import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import Run
from benchmarks.disk import Disk
from benchmarks.processes import Command, Server, free_port, run, serving, shown

_PROGRAMS = Path(sys.executable).parent
SENDER = _PROGRAMS / "flatship-sender"
RECEIVER = _PROGRAMS / "flatship-receiver"
_PEER = "bench"
_VM = "guest"

#: Serves without recording chunks.
UNJOURNALLED = (sys.executable, "-m", "benchmarks.unjournalled")

#: Told to the receiver, it does not re-read the target before it reports completion.
NO_PROOF = ("--benchmark-no-proof",)


def _unobserved(_: Server) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(slots=True)
class FlatshipPair:
    """Receiver and sender on loopback.

    State is new each time: neither end may know a block from an earlier round.
    """

    scratch: Path
    serve_options: tuple[str, ...] = ()
    receiver: tuple[str | Path, ...] = (RECEIVER,)
    sender_prefix: tuple[str | Path, ...] = ()
    observe_receiver: Callable[[Server], AbstractContextManager[None]] = _unobserved
    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        state = self.scratch / "pair"
        state.mkdir()
        try:
            return self._transfer(disk, folder, state, at_start), folder / _VM / f"{_VM}-flat.vmdk"
        finally:
            shutil.rmtree(state)

    def _transfer(self, disk: Disk, folder: Path, state: Path, at_start: Callable[[], None]) -> Run:
        address = f"127.0.0.1:{free_port()}"
        at_receiver = ("--state", state / "receiver")
        at_sender = ("--state", state / "sender")
        serve: Command = (
            *self.receiver,
            "serve",
            *at_receiver,
            "--listen",
            address,
            "--http",
            "127.0.0.1:0",
        )
        serve = (*serve, "--datastore", f"{_PEER}={folder}", *self.serve_options)
        send = (SENDER, "send", *at_sender, disk.path, "--to", _PEER, "--vm", _VM)
        self.command = f"{shown(serve)}\n{shown(send)}"
        with serving(serve, state / "receiver.log", lambda said: address in said) as receiver:
            invite = (RECEIVER, "invite", *at_receiver, "--name", "bench", "--address", address)
            (state / "invitation").write_text(run(invite).output)
            run((SENDER, "join", *at_sender, "--as", _PEER, state / "invitation"))
            with self.observe_receiver(receiver):
                before = receiver.usage()
                at_start()
                finished = run((*self.sender_prefix, *send))
                used = receiver.usage() - before
        return Run(finished.seconds, finished.usage, used)
