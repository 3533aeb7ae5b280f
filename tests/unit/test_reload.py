"""A configuration that is read again: judged whole before anything of it counts."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver.config import Config
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.facilities import Store
from flatship_receiver.reconfigure import FIXED, Running
from flatship_service import logs
from flatship_service.abandonable import in_time
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint
from flatship_service.http_access import HttpAccess, Protection
from flatship_service.notify import Notifier
from flatship_service.reload import Reload, reloading

ANYWHERE = Endpoint("127.0.0.1", 0)
A, B = Path("/a"), Path("/b")
CONFIG = Config(listen=ANYWHERE, http=ANYWHERE, datastores={"a": A}, state=Path("/state"))


@dataclass(frozen=True)
class Small:
    port: int = 1
    level: str = "low"


@dataclass
class Daemon:
    """Reads what ``next`` says, and takes it on."""

    next: Small | ConfigError = field(default_factory=Small)
    refuses: ConfigError | None = None
    applied: list[Small] = field(default_factory=list)
    told: list[bool] = field(default_factory=list)

    def read(self) -> Small:
        if isinstance(self.next, ConfigError):
            raise self.next
        return self.next

    async def apply(self, new: Small) -> Sequence[str]:
        if self.refuses is not None:
            raise self.refuses
        self.applied.append(new)
        return ()

    def reload(self) -> Reload[Small]:
        return Reload(Small(), self.read, self.apply, ("port",), self.told.append)


def test_what_changed_is_in_force_and_what_cannot_change_is_named_each_time() -> None:
    daemon = Daemon(Small(port=2, level="high"))
    reload = daemon.reload()
    for _ in range(2):
        with capture_logs() as said:
            assert asyncio.run(reload.run())
        assert [each["key"] for each in said if "key" in each] == ["port"]
        assert reload.config == Small(port=1, level="high")
    assert said[-1]["changed"] == "nothing"
    assert daemon.told == [True, True]


@pytest.mark.parametrize("by", ["read", "apply"])
def test_what_cannot_be_read_or_taken_on_leaves_the_old_one_in_force(by: str) -> None:
    error = ConfigError("no good")
    daemon = Daemon(error) if by == "read" else Daemon(Small(level="high"), error)
    reload = daemon.reload()
    with capture_logs() as said:
        assert not asyncio.run(reload.run())
    assert said == [
        {"event": "configuration kept as it was", "reason": "no good", "log_level": "error"}
    ]
    assert (reload.config, daemon.applied, daemon.told) == (Small(), [], [False])


def test_hangups_that_come_while_one_is_served_are_served_together_after_it() -> None:
    async def scenario() -> None:
        daemon = Daemon()
        go, begun = asyncio.Event(), asyncio.Event()
        applied = 0

        async def apply(_new: Small) -> Sequence[str]:
            nonlocal applied
            applied += 1
            begun.set()
            await go.wait()
            if applied == 2:
                done.set()
            return ()

        done = asyncio.Event()
        reload = Reload(Small(), daemon.read, apply, (), daemon.told.append)
        async with reloading(reload, Notifier(None), lambda: None, "up"):
            os.kill(os.getpid(), signal.SIGHUP)
            await begun.wait()
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0)
            go.set()
            async with asyncio.timeout(10):
                await done.wait()
        assert applied == 2

    asyncio.run(scenario())


class Fake:
    """Stands for a datastore, and for the store that is made of it."""

    closed = False

    def close(self) -> None:
        """As a datastore."""
        self.closed = True


@dataclass
class Parts:
    """A receiver's parts, of which ``apply`` sees no more than these."""

    gone: Sequence[Path] = ()
    silent: Sequence[Path] = ()
    opened: list[Fake] = field(default_factory=list)
    adopted: list[Fake] = field(default_factory=list)

    def running(self, sock: socket.socket) -> Running:
        async def open_(_name: str, path: Path) -> Datastore:
            if path in self.gone:
                raise DatastoreError(f"{path} is gone", ErrorCode.DATASTORE_MISSING)
            if path in self.silent:
                raise TimeoutError
            self.opened.append(Fake())
            return cast(Datastore, self.opened[-1])

        def adopt(datastore: Datastore) -> Store:
            self.adopted.append(cast(Fake, datastore))
            return cast(Store, datastore)

        endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
        return Running(
            cast(dict[str, Store], {"a": Fake()}), {"a": A}, sock, endpoint, open_, adopt
        )


def applied(new: Config, parts: Parts | None = None) -> tuple[Running, Sequence[str] | str]:
    """The parts afterwards, with the keys that wait for a restart, or the error."""
    logs.set_level("info")
    with socket.socket() as sock:
        running = (parts or Parts()).running(sock)
        try:
            return running, asyncio.run(cast(Any, running.apply(new)))
        except ConfigError as error:
            return running, str(error)


def test_datastores_come_in_the_order_of_the_configuration_and_none_goes() -> None:
    running, waiting = applied(replace(CONFIG, datastores={"b": B, "a": A}))
    assert (list(running.stores), waiting) == (["b", "a"], [])
    running, waiting = applied(replace(CONFIG, datastores={"b": B}))
    assert (list(running.stores), waiting) == (["b", "a"], ["datastore.a"])
    running, waiting = applied(replace(CONFIG, datastores={"a": B}))
    assert (list(running.stores), running.paths, waiting) == (["a"], {"a": A}, ["datastore.a"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (Parts(gone=[B]), "datastore.b: /b is gone"),
        (Parts(silent=[B]), "datastore.b: /b does not answer"),
    ],
)
def test_nothing_counts_if_one_thing_cannot_be_had(
    parts: Parts, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[str] = []
    held_to = Protection()
    monkeypatch.setattr(logs, "set_level", levels.append)
    monkeypatch.setattr("flatship_receiver.reconfigure.protection", lambda _: held_to)
    new = replace(CONFIG, datastores={"c": tmp_path, "b": B, "a": A}, log_level="error")
    running, error = applied(new, parts)
    assert error == said
    assert list(running.stores) == ["a"]
    assert running.endpoint.protection is not held_to
    assert levels == ["info"]  # that of the beginning
    assert parts.adopted == []
    assert [each.closed for each in parts.opened] == [True]


def test_no_datastore_and_files_that_cannot_be_used_are_refused() -> None:
    assert "no datastore is configured" in applied(replace(CONFIG, datastores={}))[1]
    access = HttpAccess(users_file=Path("/nonexistent"))
    running, said = applied(replace(CONFIG, datastores={"a": A, "b": B}, http_access=access))
    assert said == "http.users_file: users file /nonexistent does not exist"
    assert list(running.stores) == ["a"]


def test_the_level_of_the_log_changes() -> None:
    with capture_logs():
        applied(replace(CONFIG, log_level="error"))
    assert logs._threshold.least == logs.LEVELS["error"]
    logs.set_level("info")


def test_what_only_a_restart_changes_is_a_field_of_the_configuration() -> None:
    assert set(FIXED) <= set(Config.__dataclass_fields__)


def test_a_call_that_does_not_return_is_not_waited_for() -> None:
    async def scenario() -> None:
        never = threading.Event()
        with pytest.raises(TimeoutError):
            await in_time(never.wait, 0.1)
        never.set()
        assert await in_time(lambda: 7, 10) == 7
        with pytest.raises(ZeroDivisionError):
            await in_time(lambda: 1 // 0, 10)

    asyncio.run(scenario())
