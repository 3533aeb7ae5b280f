"""A receiver under a service manager: what it says to it, and SIGHUP while senders are served."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Sender, wait_until

from flatship_service.passwords import users_line

TIMEOUT = 20.0  # seconds


class Managed:
    """A receiver that this test starts, reloads and stops as systemd would.

    Args:
        folder: Where configuration, state and datastores are.
        watchdog: Seconds, if it is watched.
    """

    def __init__(self, folder: Path, watchdog: float | None = None) -> None:
        self.folder = folder
        self.config = folder / "receiver.toml"
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(TIMEOUT)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "flatship_receiver", "serve"),
                *("--config", str(self.config), "--state", str(folder / "state")),
            ],
            env=environment,
            stderr=self._log,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        self._socket.close()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def hear(self, beginning: str) -> str:
        """Wait for a message that begins so, and return it."""
        while True:
            message = self._socket.recv(4096).decode()
            self.heard.append(message)
            if message.startswith(beginning):
                return message

    def reload(self) -> str:
        """Have it read its configuration again; returns what it says when it has."""
        self.process.send_signal(signal.SIGHUP)
        self.hear("RELOADING=1\nMONOTONIC_USEC=")
        return self.hear("READY=1")

    def get(self, path: str = "/metrics") -> str:
        found = re.search(r"metrics on (http://\S+)/metrics", self.log)
        assert found
        with urllib.request.urlopen(found[1] + path, timeout=TIMEOUT) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        found = re.search(rf"^flatship_receiver_{name} (\S+)$", self.get(), re.MULTILINE)
        assert found
        return float(found[1])


def written(folder: Path, *datastores: str, more: str = "") -> None:
    """Write a configuration with datastores of these names."""
    for name in datastores:
        (folder / name).mkdir(exist_ok=True)
    tables = "".join(f'{name} = "{folder / name}"\n' for name in datastores)
    text = f'listen = "127.0.0.1:0"\n{more}\n[http]\nlisten = "127.0.0.1:0"\n[datastore]\n{tables}'
    (folder / "receiver.toml").write_text(text)


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    written(tmp_path, "a")
    managed = Managed(tmp_path)
    try:
        assert managed.hear("READY=1") == "READY=1\nSTATUS=listening"
        yield managed
    finally:
        managed.close()


def pair(managed: Managed, sender: Sender) -> None:
    found = re.search(r"listening on (\S+),", managed.log)
    assert found
    state = ["--config", str(managed.config), "--state", str(managed.folder / "state")]
    invited = subprocess.run(
        [
            *(sys.executable, "-m", "flatship_receiver", "invite", *state),
            *("--name", "kvm1", "--address", found[1]),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    sender.join(invited.stdout).expect(0)


def test_a_new_datastore_is_used_after_a_hangup_and_what_needs_a_restart_is_named(
    managed: Managed, sender: Sender
) -> None:
    pair(managed, sender)
    disk = managed.folder / "disk"
    disk.write_bytes(b"x" * (1 << 20))
    send = ("send", disk, "--to", "esx", "--quiet")
    before = managed.metric("config_last_reload_timestamp_seconds")
    written(managed.folder, "b", "a", more='log_level = "warning"')
    text = managed.config.read_text().replace("127.0.0.1:0", "127.0.0.1:1", 1)
    managed.config.write_text(text)
    begun = time.monotonic_ns() // 1000
    assert managed.reload() == "READY=1\nSTATUS=listening"
    (reloading,) = (message for message in managed.heard if message.startswith("RELOADING"))
    assert begun <= int(reloading.rpartition("=")[2]) <= time.monotonic_ns() // 1000
    assert 'event="takes a restart; it stays as it was until then" key=listen' in managed.log
    assert managed.metric("config_last_reload_successful") == 1
    assert managed.metric("config_last_reload_timestamp_seconds") > before
    sender.run(*send, "--vm", "one").expect(0)  # at the first one, which is another now
    sender.run(*send, "--vm", "two", "--datastore", "a").expect(0)
    assert (managed.folder / "b" / "one" / "one.vmdk").exists()
    assert (managed.folder / "a" / "two" / "two.vmdk").exists()
    assert "disk complete" not in managed.log  # which is not worth a line any more


def test_a_configuration_that_cannot_be_used_changes_nothing_and_the_log_says_why(
    managed: Managed, sender: Sender
) -> None:
    pair(managed, sender)
    for more, said in (
        ('log_level = "loud"', "receiver.toml:2: log_level: expected one of: debug, info"),
        ("[", "receiver.toml:2: not TOML"),
        ("", "datastore.gone: "),
    ):
        written(managed.folder, "a", "b", "gone", more=more)
        (managed.folder / "gone").rmdir()
        assert managed.reload() == (
            "READY=1\nSTATUS=listening; the configuration could not be read again, see the log"
        )
        last = managed.log.splitlines()[-1]
        assert 'level=error event="configuration kept as it was" reason=' in last
        assert said in last
    assert managed.metric("config_last_reload_successful") == 0
    disk = managed.folder / "disk"
    disk.write_bytes(b"x" * 512)
    send = ("send", disk, "--to", "esx", "--quiet")
    sender.run(*send, "--vm", "one", "--datastore", "b").expect(10)
    sender.run(*send, "--vm", "one").expect(0)
    written(managed.folder, "a", "b")
    managed.reload()
    assert managed.metric("config_last_reload_successful") == 1
    sender.run(*send, "--vm", "two", "--datastore", "b").expect(0)


def test_passwords_count_from_a_hangup_on_and_failed_logins_are_counted(managed: Managed) -> None:
    users = managed.folder / "users"
    users.touch(0o600)
    users.write_text(users_line("ada", "difference"))
    text = managed.config.read_text()
    managed.config.write_text(text.replace("[http]", f'[http]\nusers_file = "{users}"'))
    users.chmod(0o644)
    assert "could not" in managed.reload()
    assert f"run: chmod 640 {users}" in managed.log
    managed.get()
    users.chmod(0o600)
    assert "could not" not in managed.reload()
    for path in ("/metrics", "/healthz"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            managed.get(path)
    request = urllib.request.Request(managed_url(managed), headers=authorization("ada", "wrong"))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=TIMEOUT)
    request = urllib.request.Request(
        managed_url(managed), headers=authorization("ada", "difference")
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        assert b'auth_failures_total{reason="password"} 1.0' in answer.read()
    assert 'event="login failed" address=127.0.0.1 kind=password' in managed.log


def managed_url(managed: Managed) -> str:
    found = re.search(r"metrics on (http://\S+/metrics)", managed.log)
    assert found
    return found[1]


def authorization(name: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def test_a_receiver_is_stopped_by_one_signal_and_says_so(managed: Managed) -> None:
    managed.process.send_signal(signal.SIGTERM)
    assert managed.hear("STOPPING=1") == "STOPPING=1\nSTATUS=closing sessions"
    assert managed.process.wait(TIMEOUT) == 0


def test_a_loop_that_stands_still_gives_no_sign_of_life(tmp_path: Path) -> None:
    written(tmp_path, "a")
    managed = Managed(tmp_path, watchdog=0.3)
    try:
        managed.hear("READY=1")
        for _ in range(3):
            assert managed.hear("WATCHDOG=1") == "WATCHDOG=1"
        os.kill(managed.process.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(managed.process.pid) == "T", "it is stopped")
        managed._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                managed._socket.recv(4096)
        managed._socket.settimeout(1.0)
        with pytest.raises(TimeoutError):
            managed._socket.recv(4096)
        # What systemd sends then; the standard error says where it hung.
        managed.process.send_signal(signal.SIGABRT)
        managed.process.send_signal(signal.SIGCONT)
        assert managed.process.wait(TIMEOUT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in managed.log
    finally:
        managed.close()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
