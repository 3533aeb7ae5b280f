"""The other end is gone and nothing says so. One test: each case takes half a minute anyhow.

Exact figures are those of tests/unit/test_watchdog.py, on a clock of its own.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dark_link import dark_link, needs_namespaces
from disks import MIB, allocated, make_data_disk
from processes import RECEIVER, Pair, Receiver, Running, Sender, wait_until
from raw_peer import ScriptedReceiver, Wire, nothing

from flatship_protocol.connection import IDLE_TIMEOUT
from flatship_protocol.messages import Chunk, EndPass, Ping, Pong
from flatship_service.keys import format_key

SIZE = 64 * MIB
VM = "web01"
SLOWLY = ("--limit", "512KiB")  # the disk takes two minutes
MARGIN = 15.0  # seconds, for a machine that has other things to do
FOUND = IDLE_TIMEOUT + MARGIN

Found = Callable[[], bool]


@contextmanager
def sending_pair(folder: Path, receiver: Receiver, source: Path) -> Iterator[tuple[Pair, Running]]:
    """A transfer that is under way; neither end need be alive after the block."""
    sender = Sender(folder / "at-host")
    receiver.start()
    try:
        sender.join(receiver.invite()).expect(0)
        pair = Pair(receiver, sender)
        sending = pair.start_send(source, vm=VM, options=SLOWLY)
        part = receiver.flat(VM).with_name(f"{VM}-flat.vmdk.flatship-part")
        wait_until(lambda: part.exists() and allocated(part) >= MIB, "some of it is written")
        yield pair, sending
    finally:
        sender.close()
        receiver.kill()


def given_up(sending: Running) -> Found:
    """The sender has ended, and says why."""
    return lambda: sending.ended and sending.wait().expect(3) is not None


def told(receiver: Receiver) -> Found:
    """The receiver says that every connection was silent, and keeps what it has."""
    return lambda: (
        "session ended" in receiver.log
        and "files kept, to be resumed" in receiver.log
        and ("has been silent for 30 s" in receiver.log or "timed out" in receiver.log)
    )


@contextmanager
def deaf_receiver(folder: Path, source: Path) -> Iterator[Running]:
    """A receiver that lives and reads nothing, as when its storage hangs; yields its sender."""
    over = threading.Event()

    def stop_reading(wire: Wire, _: Chunk) -> None:
        while not over.wait(5):
            wire.send(Ping(0))

    answers = {Chunk: stop_reading, EndPass: nothing, Pong: nothing}
    with ScriptedReceiver(answers) as receiver:
        sender = Sender(folder)
        introduction = folder / "sender" / "receivers.d"
        sender.run("identity").expect(0)
        introduction.mkdir(mode=0o700, exist_ok=True)
        (introduction / "esx.toml").write_text(
            f'endpoint = "127.0.0.1:{receiver.port}"\n'
            f'public_key = "{format_key(receiver.identity.public)}"\n'
        )
        sending = sender.start_send(source, vm=VM)
        try:
            wait_until(lambda: Chunk in {type(m) for m in receiver.received}, "chunks come")
            yield sending
        finally:
            over.set()
            sender.close()


@needs_namespaces
def test_whoever_is_gone_is_missed_within_half_a_minute_and_who_only_hangs_is_not(
    tmp_path: Path,
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    with ExitStack() as stack:
        link = stack.enter_context(dark_link())
        cut, stopped, left = (tmp_path / name for name in ("cut", "stopped", "left"))
        beyond = Receiver(cut, program=(*link.within, *RECEIVER), host=link.far)
        cut_pair, cut_sending = stack.enter_context(sending_pair(cut, beyond, source))
        stopped_pair, stopped_sending = stack.enter_context(
            sending_pair(stopped, Receiver(stopped), source)
        )
        left_pair, left_sending = stack.enter_context(sending_pair(left, Receiver(left), source))
        hanging = stack.enter_context(deaf_receiver(tmp_path / "hanging", source))

        link.go_dark()
        stopped_pair.receiver.process.signal(signal.SIGSTOP)
        left_sending.signal(signal.SIGSTOP)
        since = time.monotonic()
        waited_for: dict[str, Found] = {
            "the sender misses a receiver behind a dark link": given_up(cut_sending),
            "the receiver misses a sender behind a dark link": told(cut_pair.receiver),
            "the sender misses a receiver that was stopped": given_up(stopped_sending),
            "the receiver misses a sender that was stopped": told(left_pair.receiver),
        }
        took: dict[str, float] = {}
        while waited_for and time.monotonic() - since < FOUND:
            for what in [what for what, found in waited_for.items() if found()]:
                del waited_for[what]
                took[what] = time.monotonic() - since
            time.sleep(0.1)
        print(took)
        assert not waited_for, f"after {FOUND:.0f} s: {', '.join(waited_for)}"
        # Longer than silence is borne: what merely hangs must still be connected then.
        time.sleep(max(0.0, since + IDLE_TIMEOUT + 5 - time.monotonic()))
        assert not hanging.ended, hanging.stderr
        assert "no progress" in hanging.stderr
        stopped_pair.receiver.process.signal(signal.SIGCONT)
