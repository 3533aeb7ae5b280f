"""A real receiver on a device that is logged, and a real sender that gives it work."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import Receiver, Sender, wait_until

from crash.device import FILE_SYSTEMS, FileSystem, LoggedDevice
from crash.events import Begun, Event, Noting, Stored, read_events
from crash.steps import IN_FLUSHES, SLOWLY, VM, Step
from crash.write_log import Entry, read_entries

OBSERVED: Final = (sys.executable, "-m", "crash.observed_receiver")
STATE: Final = "state"
DATASTORE: Final = "datastore"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which file systems there are on the device.

    Args:
        kind: What they are.
        apart: The receiver's state has one of its own, so that neither's syncs cover for
            the other's; else state and datastore are folders of one.
    """

    kind: FileSystem
    apart: bool

    @classmethod
    def named(cls, name: str) -> "Layout":
        """For example ``ext4-apart`` or ``xfs-together``."""
        kind, _, how = name.partition("-")
        return cls(FILE_SYSTEMS[kind], apart=how == "apart")

    @property
    def size(self) -> int:
        """Bytes of the device."""
        return self.kind.size * (2 if self.apart else 1)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Names of the file systems, and where they begin, in bytes."""
        if self.apart:
            return ((DATASTORE, 0), (STATE, self.kind.size))
        return ((DATASTORE, 0),)

    def state(self, mounted: Path) -> Path:
        """The receiver's state folder, with the file systems mounted below ``mounted``."""
        return mounted / (STATE if self.apart else DATASTORE) / "state"

    def datastore(self, mounted: Path) -> Path:
        """The datastore's folder, likewise."""
        return mounted / DATASTORE / "ds"


@dataclass(frozen=True, slots=True)
class Recording:
    """What was logged, and what is needed to go on from any place in it.

    Args:
        entries: Of the log.
        log: The file.
        start: How many entries there were when receiver and sender had paired.
        end: How many there were when the receiver had stopped, before it was unmounted.
        events: In order.
        content: The device, as it was in the end.
        source: The disk's path; its content changes from step to step.
        sender: The sender's state folder.
        address: Where the receiver listened.
    """

    entries: list[Entry]
    log: Path
    start: int
    end: int
    events: list[Event]
    content: Path
    source: Path
    sender: Path
    address: str


def record(folder: Path, layout: Layout, steps: Sequence[Step], host: str) -> Recording:
    """Run all steps. Nothing runs or is mounted any more when this returns or raises.

    Args:
        folder: Where everything is kept; made.
        layout: What is made on the device.
        steps: The commands.
        host: Where the receiver listens: an address of the loopback that is nobody else's.
    """
    folder.mkdir()
    device = LoggedDevice(folder / "device", layout.size)
    try:
        mounted = folder / "device"
        for name, offset in layout.parts:
            device.make(layout.kind, name, offset)
        receiver = Receiver(
            folder / "at-datastore",
            state=layout.state(mounted),
            datastore=layout.datastore(mounted),
            program=OBSERVED,
        )
        _sync_folders(receiver.datastore, mounted)  # which the operator made long ago
        receiver.address = f"{host}:0"
        sender = Sender(folder / "at-host")
        events = folder / "events"
        os.environ |= {"CRASH_LOG": str(device.log), "CRASH_EVENTS": str(events)}
        noting = Noting(device.log, events)
        source = folder / "disk.raw"
        try:
            receiver.start()
            sender.join(receiver.invite()).expect(0)
            start = noting.position()
            for number, step in enumerate(steps):
                _run(number, step, receiver, sender, source, noting)
            receiver.stop()
            end = noting.position()
        finally:
            sender.close()
            receiver.close()
            noting.close()
    finally:
        device.close()
    return Recording(
        entries=read_entries(device.log),
        log=device.log,
        start=start,
        end=end,
        events=read_events(events),
        content=device.content,
        source=source,
        sender=sender.state,
        address=receiver.address,
    )


def _run(
    number: int, step: Step, receiver: Receiver, sender: Sender, source: Path, noting: Noting
) -> None:
    if step.restart:
        receiver.stop()
        receiver.start()
    write_source(source, step)
    noting.note(Begun(noting.position(), number))
    options = (*step.options, *(SLOWLY if step.cut_short else IN_FLUSHES))
    if not step.cut_short:
        sender.send(source, vm=VM, options=options).expect(0)
        return
    seen, kept = len(_stored(noting)), receiver.log.count("incomplete files kept")
    sending = sender.start_send(source, vm=VM, options=options)
    wait_until(lambda: len(_stored(noting)) > seen or sending.ended, "an acknowledgement")
    assert not sending.ended, f"{step.name}: it ended before it was cut short\n{sending.stderr}"
    sending.kill()
    # What the receiver still has to say belongs to this step.
    wait_until(lambda: receiver.log.count("incomplete files kept") > kept, "the session ends")


def _sync_folders(folder: Path, above: Path) -> None:
    while folder != above:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        folder = folder.parent


def _stored(noting: Noting) -> list[Stored]:
    return [event for event in read_events(noting.path) if isinstance(event, Stored)]


def write_source(source: Path, step: Step) -> None:
    """Make the source what it is at a step; it stays the same file."""
    with source.open("r+b" if source.exists() else "w+b") as file:
        file.write(step.content)
