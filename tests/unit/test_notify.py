import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flatship_service.notify import Notifier, watched


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        yield listener


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_states_arrive_at_the_socket_of_the_service_manager(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notifier = Notifier.from_environment()

    notifier.ready("listening on 127.0.0.1:7000")
    assert received(manager) == ["READY=1", "STATUS=listening on 127.0.0.1:7000"]
    notifier.status("2 disks")
    assert received(manager) == ["STATUS=2 disks"]
    notifier.stopping("writing checkpoints")
    assert received(manager) == ["STOPPING=1", "STATUS=writing checkpoints"]


def test_reload_carries_the_monotonic_time_that_systemd_asks_for(
    manager: socket.socket, tmp_path: Path
) -> None:
    manager.bind(str(tmp_path / "notify"))

    Notifier(str(tmp_path / "notify")).reloading()

    reloading, at = received(manager)
    assert reloading == "RELOADING=1"
    assert at.removeprefix("MONOTONIC_USEC=").isdigit()


def test_abstract_address_is_understood(manager: socket.socket) -> None:
    manager.bind("")  # the kernel chooses an abstract address
    address = manager.getsockname()

    Notifier("@" + address[1:].decode()).status("here")

    assert received(manager) == ["STATUS=here"]


def test_status_cannot_smuggle_in_another_assignment(
    manager: socket.socket, tmp_path: Path
) -> None:
    manager.bind(str(tmp_path / "notify"))

    Notifier(str(tmp_path / "notify")).status("disk a\nMAINPID=1")

    assert received(manager) == [r"STATUS=disk a\nMAINPID=1"]


@pytest.mark.parametrize("address", [None, "", "/nonexistent/notify"])
def test_without_a_listener_nothing_happens(address: str | None) -> None:
    Notifier(address).ready("up")


def test_manager_that_does_not_read_does_not_hold_the_daemon_up(
    manager: socket.socket, tmp_path: Path
) -> None:
    manager.bind(str(tmp_path / "notify"))
    notifier = Notifier(str(tmp_path / "notify"))

    for _ in range(5000):
        notifier.status("x" * 1000)

    assert received(manager)


def heard(manager: socket.socket) -> int:
    """How many messages have come, none of which remains."""
    count = 0
    manager.setblocking(False)
    with suppress(BlockingIOError):
        while manager.recv(4096):
            count += 1
    return count


def test_it_is_the_event_loop_that_says_it_is_alive(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setattr("faulthandler.enable", lambda: None)

    async def scenario() -> None:
        async with watched(Notifier(str(tmp_path / "notify"), watchdog=0.03)):
            await asyncio.sleep(0.1)
            assert heard(manager) >= 2
            time.sleep(0.2)  # noqa: ASYNC251  # a loop that hangs
            assert heard(manager) == 0
            await asyncio.sleep(0.05)
            assert heard(manager) >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_what_the_environment_says(
    environment: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Notifier.from_environment().watchdog == seconds
