"""Where series of faults are played: a paired receiver and sender with a proxy between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import CompletedRun, Pair, Receiver, Sender, run_program
from proxy import Proxy, Toll


@dataclass(frozen=True)
class Stage:
    """Used by one schedule after another; the sender knows the proxy as ``proxy``."""

    folder: Path
    pair: Pair
    proxy: Proxy
    toll: Toll


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Set a stage below ``folder``; all of its processes have ended after the block."""
    receiver, sender = Receiver(folder), Sender(folder)
    receiver.start()
    try:
        sender.join(receiver.invite()).expect(0)
        toll = Toll()
        with Proxy(receiver.address, toll) as proxy:
            sender.knows("proxy", proxy.address)
            yield Stage(folder, Pair(receiver, sender), proxy, toll)
    finally:
        sender.close()
        if receiver.is_running:
            receiver.kill()


def check_logs(receiver: Receiver) -> None:
    """No receiver of this folder has said anything that an operator should not read."""
    for log in receiver.folder.glob("receiver-*.err"):
        said = log.read_text(errors="replace")
        assert "Traceback" not in said, f"{log}: {said}"
        assert "internal error" not in said, f"{log}: {said}"


def same_to_qemu(source: Path, descriptor: Path) -> CompletedRun:
    """Hold a published disk against its source as a host would read it."""
    compared = ("compare", "-f", "raw", "-F", "vmdk", source, descriptor)
    return run_program("qemu-img", *compared).expect(0)
