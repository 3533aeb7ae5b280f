"""Flatship as a contestant: both programs as real processes, paired afresh for every transfer."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import Run
from benchmarks.disk import Disk
from benchmarks.processes import Command, Server, free_port, run, serving, shown
from benchmarks.way import LOOPBACK, Way

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


@dataclass(frozen=True, slots=True)
class Kept:
    """What the two ends keep of the disks that they moved: bytes in their state folders."""

    sender: int  # keys, and the page indexes
    receiver: int  # keys, and the record of chunks


@dataclass(frozen=True, slots=True)
class Pairing:
    """A receiver that runs, and a sender that may send to it again and again."""

    state: Path
    folder: Path  # the datastore
    receiver: Server
    commands: list[str]  # as typed: the receiver's, and one for each ``send``

    def command(self, disks: Sequence[Disk], vm: str, options: Command = ()) -> Command:
        """What sends ``disks``."""
        paths = [disk.path for disk in disks]
        at_sender = ("--state", self.state / "sender")
        return (SENDER, "send", *at_sender, *paths, "--to", _PEER, "--vm", vm, *options)

    def send(
        self, disks: Sequence[Disk], vm: str = _VM, options: Command = ()
    ) -> tuple[Run, dict[str, Any]]:
        """Send ``disks`` and give what it cost, and what ``--json`` said.

        Raises:
            BenchmarkError: It failed.
        """
        before = self.receiver.usage()
        command = self.command(disks, vm, (*options, "--json"))
        self.commands.append(shown(command))
        finished = run(command)
        cost = Run(finished.seconds, finished.usage, self.receiver.usage() - before)
        return cost, json.loads(finished.output)

    def copy(self, vm: str = _VM, number: int = 0) -> Path:
        """What the disk of that number was published as."""
        name = vm if number == 0 else f"{vm}_{number}"
        return self.folder / vm / f"{name}-flat.vmdk"

    def kept(self) -> Kept:
        """What the state folders take at this moment."""
        return Kept(_occupied(self.state / "sender"), _occupied(self.state / "receiver"))


@contextmanager
def paired(
    scratch: Path,
    folder: Path,
    way: Way = LOOPBACK,
    receiver: tuple[str | Path, ...] = (RECEIVER,),
    serve_options: tuple[str, ...] = (),
) -> Iterator[Pairing]:
    """Run a receiver for the length of the block, with a sender that has joined it.

    Args:
        scratch: A folder is made in it for keys, logs and state, and removed.
        folder: The datastore.
        way: Where the receiver runs.
        receiver: The receiver's program.
        serve_options: For its ``serve``.
    """
    state = scratch / "pair"
    state.mkdir()
    address = f"{way.host}:{free_port()}"
    at_receiver = ("--state", state / "receiver")
    listen = ("--listen", address, "--http", "127.0.0.1:0")
    serve: Command = (*receiver, "serve", *at_receiver, *listen)
    serve = (*way.beyond, *serve, "--datastore", f"{_PEER}={folder}", *serve_options)
    try:
        with serving(serve, state / "receiver.log", lambda said: address in said) as server:
            invite = (RECEIVER, "invite", *at_receiver, "--name", "bench", "--address", address)
            (state / "invitation").write_text(run(invite).output)
            at_sender = ("--state", state / "sender")
            run((SENDER, "join", *at_sender, "--as", _PEER, state / "invitation"))
            yield Pairing(state, folder, server, [shown(serve)])
    finally:
        shutil.rmtree(state)


@dataclass(slots=True)
class FlatshipPair:
    """Receiver and sender, on loopback or over a link.

    State is new each time: neither end may know a block from an earlier round.
    """

    scratch: Path
    serve_options: tuple[str, ...] = ()
    receiver: tuple[str | Path, ...] = (RECEIVER,)
    sender_prefix: tuple[str | Path, ...] = ()
    observe_receiver: Callable[[Server], AbstractContextManager[None]] = _unobserved
    send_options: tuple[str, ...] = ()
    way: Way = LOOPBACK
    command: str = ""
    kept: Kept | None = None  # at the end of the last transfer

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        with paired(self.scratch, folder, self.way, self.receiver, self.serve_options) as pairing:
            send = pairing.command([disk], _VM, self.send_options)
            self.command = "\n".join([*pairing.commands, shown(send)])
            with self.observe_receiver(pairing.receiver):
                before = pairing.receiver.usage()
                at_start()
                finished = run((*self.sender_prefix, *send))
                used = pairing.receiver.usage() - before
            self.kept = pairing.kept()
            return Run(finished.seconds, finished.usage, used), pairing.copy()


def _occupied(folder: Path) -> int:
    return sum(
        Path(path, name).lstat().st_blocks * 512
        for path, _, names in os.walk(folder)
        for name in names
    )
