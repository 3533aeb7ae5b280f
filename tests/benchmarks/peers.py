"""What a user would pick instead of Flatship, each as its own manual recommends."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import Run
from benchmarks.disk import Disk, copy_sparse
from benchmarks.processes import Server, free_port, listens, run, serving, shown
from benchmarks.way import LOOPBACK, Way

_PSK_USER = "flatship"


@dataclass(slots=True)
class NbdPeer:
    """A client that writes to nbdkit's file plugin, which serves an empty file of the right size.

    ``client`` may name ``{disk}`` and ``{uri}``. With ``tls_psk`` both ends use
    TLS with a pre-shared key, and nbdkit refuses anything else.
    """

    client: str
    state: Path
    tls_psk: bool = False
    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        target = folder / "copy.raw"
        with target.open("wb") as file:
            file.truncate(disk.size)
        port = free_port()
        server: list[str | Path] = [
            "nbdkit",
            "-f",
            "--ipaddr=127.0.0.1",
            f"--port={port}",
            *self._tls(),
            "file",
            target,
        ]
        client = self.client.format(disk=disk.path, uri=self._uri(port)).split()
        self.command = f"{shown(server)}\n{shown(client)}"
        with serving(server, self.state / "nbdkit.log", lambda _: listens(port)) as nbdkit:
            return _timed(client, nbdkit, at_start), target

    def _keys(self) -> Path:
        return self.state / "keys.psk"

    def _tls(self) -> list[str]:
        if not self.tls_psk:
            return []
        if not self._keys().exists():
            run(["psktool", "-u", _PSK_USER, "-p", self._keys()])
        return ["--tls=require", f"--tls-psk={self._keys()}"]

    def _uri(self, port: int) -> str:
        if not self.tls_psk:
            return f"nbd://127.0.0.1:{port}"
        return f"nbds://{_PSK_USER}@127.0.0.1:{port}/?tls-psk-file={self._keys()}"


@dataclass(slots=True)
class SshPeer:
    """A pipeline through a private sshd with keys of its own.

    ``pipeline`` may name ``{disk}``, ``{target}``, ``{ssh}`` (the ssh command
    with its options, the host left out) and ``{host}``. ``target`` is made by the
    pipeline; with ``over`` it is a copy of that disk beforehand.
    """

    pipeline: str
    state: Path
    way: Way = LOOPBACK
    over: Disk | None = None
    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        target = folder / "copy.raw"
        port = free_port()
        if self.over is not None:
            copy_sparse(self.over, target)
        pipeline = self.pipeline.format(
            disk=disk.path, target=target, ssh=self._ssh(port), host=self.way.host
        )
        self.command = pipeline
        with self._sshd(port) as sshd:
            return _timed([pipeline], sshd, at_start, shell=True), target

    def _ssh(self, port: int) -> str:
        return (
            f"ssh -F none -i {self.state}/user_key -p {port} -o BatchMode=yes"
            f" -o StrictHostKeyChecking=accept-new"
            f" -o UserKnownHostsFile={self.state}/known_hosts-{port}"
        )

    @contextmanager
    def _sshd(self, port: int) -> Iterator[Server]:
        for key in ("host_key", "user_key"):
            if not (self.state / key).exists():
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.state / key])
        configuration = self.state / "sshd_config"
        configuration.write_text(
            f"ListenAddress {self.way.host}:{port}\n"
            f"HostKey {self.state}/host_key\n"
            f"AuthorizedKeysFile {self.state}/user_key.pub\n"
            f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "/usr/sbin/sshd"
        command: list[str | Path] = [*self.way.beyond, sshd, "-D", "-e", "-f", configuration]
        with (
            _privilege_separation_folder(),
            serving(
                command, self.state / "sshd.log", lambda said: "Server listening" in said
            ) as server,
        ):
            yield server


def _timed(
    command: list[str], server: Server, at_start: Callable[[], None], *, shell: bool = False
) -> Run:
    before = server.usage()
    at_start()
    finished = run(command, shell=shell)
    return Run(finished.seconds, finished.usage, server.usage() - before)


@contextmanager
def _privilege_separation_folder() -> Iterator[None]:
    """An sshd run by root insists on /run/sshd, which the masked service would have made."""
    folder = Path("/run/sshd")
    made = os.geteuid() == 0 and not folder.exists()
    if made:
        folder.mkdir(mode=0o755)
    try:
        yield
    finally:
        if made:
            folder.rmdir()


def all_peers(state: Path) -> dict[str, NbdPeer | SshPeer]:
    """Every peer by the name that results give it; keys and logs go to ``state``."""
    return {
        "nbdcopy": NbdPeer("nbdcopy {disk} {uri}", state),
        "nbdcopy TLS": NbdPeer("nbdcopy {disk} {uri}", state, tls_psk=True),
        "nbdcopy --flush": NbdPeer("nbdcopy --flush {disk} {uri}", state),
        "qemu-img convert": NbdPeer(
            "qemu-img convert -n -W -m 8 -f raw -O raw {disk} {uri}", state
        ),
        "rsync over ssh": SshPeer(
            "rsync -S -z --zc=zstd --zl=1 -e '{ssh}' {disk} {host}:{target}", state
        ),
        "dd over ssh": SshPeer(
            "dd if={disk} bs=4M status=none | {ssh} {host} dd of={target} bs=4M status=none",
            state,
        ),
    }


def slow_link_peers(state: Path, way: Way) -> dict[str, SshPeer]:
    """What one would use over a slow link, compressed as well as its speed allows."""
    pipe = (
        "zstd -{level} --long=27 -T0 -q -c {{disk}} | {{ssh}} {{host}}"
        " 'zstd -d --long=27 -q -c"
        " | dd of={{target}} bs=1M iflag=fullblock conv=sparse status=none'"
    )
    return {
        "rsync --zl=3": SshPeer(
            "rsync -S -z --zc=zstd --zl=3 -e '{ssh}' {disk} {host}:{target}", state, way
        ),
        "zstd -3 over ssh": SshPeer(pipe.format(level=3), state, way),
        "zstd -9 over ssh": SshPeer(pipe.format(level=9), state, way),
    }


def rsync_inplace(state: Path, way: Way, over: Disk) -> SshPeer:
    """Brings a copy of ``over`` up to date by its differences, which rsync finds at both ends."""
    command = "rsync --inplace -z --zc=zstd --zl=3 -e '{ssh}' {disk} {host}:{target}"
    return SshPeer(command, state, way, over)


def versions() -> list[str]:
    """One line for each program: its name and version."""
    commands = [
        ["nbdcopy", "--version"],
        ["nbdkit", "--version"],
        ["qemu-img", "--version"],
        ["rsync", "--version"],
        ["ssh", "-V"],
        ["zstd", "--version"],
    ]
    lines = []
    for command in commands:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        lines.append(f"{command[0]}: {(said.stdout + said.stderr).splitlines()[0].strip()}")
    return lines
