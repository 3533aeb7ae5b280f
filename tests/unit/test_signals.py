import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flatship_service.signals import on_hangup, stop_on_signal

LOOPS = ["asyncio", "uvloop"]

# Says "ready", then "stopping" at the first signal; then hangs without ever
# returning to its loop, as a daemon would whose disk does not answer.
DAEMON = """
import asyncio, contextlib, time
from {loop} import new_event_loop
from flatship_service.signals import stop_on_signal

async def main():
    with stop_on_signal(asyncio.get_running_loop()) as stop:
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        while {hang}:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(60)
    print("stopped", flush=True)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@contextmanager
def daemon(loop: str, *, hang: bool) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON.format(loop=loop, hang=hang)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert said(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks_and_the_daemon_leaves_in_order(
    loop: str, number: signal.Signals
) -> None:
    with daemon(loop, hang=False) as process:
        process.send_signal(number)

        assert said(process) == "stopping"
        assert said(process) == "stopped"
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_a_daemon_whose_loop_hangs(loop: str, number: signal.Signals) -> None:
    with daemon(loop, hang=True) as process:
        process.send_signal(signal.SIGTERM)
        assert said(process) == "stopping"

        process.send_signal(number)

        assert process.wait(timeout=10) == -number


def test_handlers_are_gone_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    async def serve() -> None:
        with stop_on_signal(asyncio.get_running_loop()) as stop:
            assert not stop.is_set()

    asyncio.run(serve())

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def hung_up(monkeypatch: pytest.MonkeyPatch, before: bool, after: bool, ignored: bool) -> list[str]:
    """What is called at a SIGHUP, by whether there is a terminal before it, and after."""
    called: list[str] = []
    has_terminal = before
    monkeypatch.setattr("flatship_service.signals._has_terminal", lambda: has_terminal)
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    async def scenario() -> None:
        nonlocal has_terminal
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def call(what: str) -> None:
            called.append(what)
            done.set()

        with on_hangup(loop, lambda: call("read"), lambda: call("leave")):
            has_terminal = after
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(done.wait(), 10)

    try:
        asyncio.run(scenario())
    finally:
        signal.signal(signal.SIGHUP, earlier)
    return called


@pytest.mark.parametrize(
    ("before", "after", "ignored", "called"),
    [
        (True, True, False, "read"),
        (False, False, False, "read"),
        (True, False, False, "leave"),
        (True, False, True, "read"),
    ],
)
def test_a_hangup_means_read_again_unless_the_terminal_is_gone(
    monkeypatch: pytest.MonkeyPatch, before: bool, after: bool, ignored: bool, called: str
) -> None:
    assert hung_up(monkeypatch, before, after, ignored) == [called]
