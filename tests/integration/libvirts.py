"""Real libvirts without a service: its test driver, which reads a file, and a session's daemon."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from disks import is_root
from processes import wait_until

RUNNING, PAUSED, SHUT_OFF = 1, 3, 5  # as libvirt numbers states
EMULATOR: Final = Path("/usr/bin/qemu-system-x86_64")
_DAEMON: Final = Path("/usr/sbin/libvirtd")
_NOBODY: Final = 65534  # Debian's user of that name, and its group
_TEST: Final = "xmlns:test='http://libvirt.org/schemas/domain/test/1.0'"


def drive(target: str, path: Path | str, driver: str = "raw", *, bus: str = "virtio") -> str:
    """A disk that is a file."""
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{driver}'/>"
        f"<source file='{path}'/><target dev='{target}' bus='{bus}'/></disk>"
    )


CDROM: Final = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"


def domain(
    name: str, *devices: str, state: int = SHUT_OFF, kind: str = "test", saved: bool = False
) -> str:
    """A domain's XML; ``state`` and ``saved`` are for the test driver."""
    own = f"<test:runstate>{state}</test:runstate>" + "<test:hasmanagedsave/>" * saved
    emulator = f"<emulator>{EMULATOR}</emulator>" if kind == "qemu" else ""
    return f"""<domain type='{kind}' {_TEST if kind == "test" else ""}>
        <name>{name}</name><memory unit='MiB'>64</memory>
        <os><type arch='x86_64'>hvm</type></os>
        <devices>{emulator}{"".join(devices)}</devices>
        {own if kind == "test" else ""}
        </domain>"""


def pool(folder: Path, *volumes: str) -> str:
    """A storage pool ``images`` of files in a folder."""
    listed = "".join(
        f"<volume type='file'><name>{each}</name><capacity>1048576</capacity>"
        f"<target><path>{folder / each}</path></target></volume>"
        for each in volumes
    )
    return (
        f"<pool type='dir'><name>images</name><target><path>{folder}</path></target>{listed}</pool>"
    )


def node(file: Path, *parts: str) -> str:
    """Write what the test driver has; returns its URI."""
    file.write_text(f"<node>{''.join(parts)}</node>")
    return f"test://{file}"


class Session:
    """libvirt's daemon for one user, with folders of its own.

    Args:
        folder: All that it writes is below, and so must disks be, to be its user's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"qemu:///session?socket={self.socket}"

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it."""
        (self.folder / "run").mkdir(mode=0o700)
        self.folder.chmod(0o755)
        self.own(self.folder, self.folder / "run")
        user = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups") if is_root() else ()
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                ("setpriv", *user, "--pdeathsig", "TERM", _DAEMON, "--timeout", "120"),
                env={
                    **os.environ,
                    "HOME": str(self.folder),
                    "XDG_CACHE_HOME": str(self.folder / "cache"),
                    "XDG_CONFIG_HOME": str(self.folder / "config"),
                    "XDG_RUNTIME_DIR": str(self.folder / "run"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def own(self, *paths: Path) -> None:
        """Give files to the daemon's user."""
        if is_root():
            for path in paths:
                os.chown(path, _NOBODY, _NOBODY)

    def virsh(self, *words: str | Path) -> str:
        """Run a command of virsh's; returns what it says."""
        done = subprocess.run(
            ("virsh", "--quiet", "--connect", self.uri, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    def end_guests(self) -> None:
        """End what a test that failed has left: guests outlive their daemon."""
        for file in (self.folder / "run" / "libvirt" / "qemu" / "run").glob("*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


@contextmanager
def session() -> Iterator[Session]:
    """A daemon that runs for the length of the block, and so do its domains."""
    if not _DAEMON.exists() or not EMULATOR.exists():
        pytest.skip("takes the packages libvirt-daemon and qemu-system-x86")
    # Paths of sockets are short. The daemon of root would be the whole system's, so it is nobody's.
    with tempfile.TemporaryDirectory(prefix="libvirt-") as name:
        found = Session(Path(name))
        running = found.begin()
        try:
            wait_until(found.socket.exists, "libvirtd listens")
            yield found
        finally:
            found.end_guests()
            running.terminate()
            running.wait(30)
