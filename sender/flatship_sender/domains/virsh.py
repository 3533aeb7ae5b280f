"""Asks libvirt by its own ``virsh``: reading only, in English, bounded in time."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Final

from flatship_protocol.errors import SourceError
from flatship_sender.refusals import TRY_AGAIN

TIMEOUT: Final = 20.0  # seconds for each question

# What says where a user's libvirt is; nothing else of this process's environment goes along.
_KEPT: Final = (
    "HOME",
    "LIBVIRT_DEFAULT_URI",
    "LOGNAME",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
)
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REFUSED: Final = ("ermission denied", "authentication", "access denied")
_NO_DOMAIN: Final = "failed to get domain"  # and another line, if that is for another reason
_UNREACHED: Final = "failed to connect to the hypervisor"


class LibvirtFailed(SourceError):
    """libvirt cannot be asked, or does not answer as it should."""


class LibvirtUnavailable(LibvirtFailed):
    """libvirt does not run, or hangs."""

    exit_code = TRY_AGAIN


class LibvirtRefuses(LibvirtFailed):
    """libvirt does not let this user in."""

    exit_code = 12


class NoSuchDomain(Exception):
    """libvirt knows none by that name."""


class Virsh:
    """A libvirt, as ``virsh`` reaches it.

    Every question raises ``LibvirtFailed`` when it cannot be asked, and ``NoSuchDomain`` when it is
    about a domain that is not there.

    Args:
        connect: Its URI; None for the one that libvirt takes.
        program: What is run.
        timeout: In seconds, for each question.
    """

    def __init__(
        self, connect: str | None = None, program: str = "virsh", timeout: float = TIMEOUT
    ) -> None:
        at = [] if connect is None else [f"--connect={connect}"]
        self._command = [program, "--quiet", "--readonly", *at]
        self._timeout = timeout

    def uri(self) -> str:
        """Which libvirt it is."""
        return self._line("uri")

    def names(self) -> list[str]:
        """All domains."""
        return self._lines("list", "--all", "--name")

    def saved(self) -> list[str]:
        """The domains that are shut off with their memory saved."""
        return self._lines("list", "--inactive", "--with-managed-save", "--name")

    def state(self, domain: str) -> str:
        """How a domain is, in virsh's words: running, shut off, paused …"""
        return self._line("domstate", f"--domain={domain}")

    def describe(self, domain: str) -> bytes:
        """A domain's XML as it is now, without passwords."""
        return self._ask("dumpxml", f"--domain={domain}")

    def volume_path(self, pool: str, volume: str) -> str:
        """Where the host has a volume of a storage pool."""
        return self._line("vol-path", f"--pool={pool}", f"--vol={volume}")

    def _line(self, *question: str) -> str:
        return os.fsdecode(self._ask(*question)).strip("\n")

    def _lines(self, *question: str) -> list[str]:
        return [line for line in self._line(*question).split("\n") if line]

    def _ask(self, *question: str) -> bytes:
        try:
            # In a session of its own: it has no terminal to ask on, and ends as one group.
            process = subprocess.Popen(
                [*self._command, *question],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise LibvirtFailed(
                f"{self._command[0]} cannot be run: {error.strerror}; to have domains found install"
                " the package libvirt-clients, or name the disks themselves"
            ) from error
        except ValueError as error:  # an embedded null byte
            raise LibvirtFailed(f"virsh cannot be asked: {error}") from error
        with process:
            try:
                answer, said = process.communicate(timeout=self._timeout)
            except BaseException as error:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LibvirtUnavailable(
                        f"libvirt has not answered virsh {question[0]} within"
                        f" {self._timeout:.0f} s; does virsh list answer?"
                        " Name the disks themselves if it does not"
                    ) from error
                raise
        if process.returncode:
            raise _failure(question[0], process.returncode, said)
        return answer


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PATH": _PATH, "LC_ALL": "C"}


def _failure(question: str, code: int, said: bytes) -> NoSuchDomain | LibvirtFailed:
    lines = [line for line in os.fsdecode(said).splitlines() if line.startswith("error: ")]
    reason = ": ".join(line.removeprefix("error: ") for line in lines) or f"exit code {code}"
    if lines and _NO_DOMAIN in lines[0] and (len(lines) == 1 or "Domain not found" in reason):
        return NoSuchDomain(reason)
    if any(word in reason for word in _REFUSED):
        return LibvirtRefuses(
            f"virsh {question}: {reason}; run as root, or as a user whom libvirt lets in"
        )
    if _UNREACHED in reason:
        return LibvirtUnavailable(
            f"virsh {question}: {reason}; is libvirt running, and is it the right one?"
            " --connect names another, such as qemu:///system"
        )
    return LibvirtFailed(f"virsh {question}: {reason}")
