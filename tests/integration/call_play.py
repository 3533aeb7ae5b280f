"""Plays one seeded failure of a system call, by strace(1), in the receiver or the sender.

What must hold: the command ends with a line that says what to do and a documented exit code;
nothing wrong is published; a disk that the fault does not concern completes; and once the fault
is gone the same command completes, byte for byte.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from disks import MIB, make_data_disk, make_disk, same_content
from faults import injected
from processes import CompletedRun, Running, wait_until
from stages import Stage, check_logs, same_to_qemu

SIZES: Final = (3 * MIB, 6 * MIB + 512)  # bytes of the two disks
EXIT_CODES: Final = frozenset({0, 1, 3, 5, 11, 12})
RENAMES: Final = "rename,renameat,renameat2"
READS: Final = "preadv,preadv2,pread64"
SENDS: Final = "sendto,sendmsg"
RECEIVES: Final = "recvfrom,recvmsg"


@dataclass(frozen=True)
class Fault:
    """A call that fails.

    Args:
        call: Its name, or several.
        error: What it fails with.
        place: Whose calls: the receiver's on the first ``disk``, its ``journal``, its ``log`` or
            ``any`` file; or the sender's on its first ``source``.
        calls: How many of them a disk makes at least, as far as the series counts.
        options: Of ``send``.
    """

    call: str
    error: str
    place: str
    calls: int = 1
    options: tuple[str, ...] = ()


FAULTS: Final = (
    *(Fault("pwrite64", error, "disk", 3) for error in ("ENOSPC", "EIO", "EDQUOT", "EINTR")),
    *(Fault("fdatasync", error, "disk") for error in ("EIO", "ENOSPC")),
    Fault("fsync", "EIO", "disk"),
    Fault("ftruncate", "ENOSPC", "disk"),
    Fault("fallocate", "ENOSPC", "disk", 1, ("--provisioning", "thick")),
    Fault(READS, "EIO", "disk"),
    *(Fault("pwrite64", error, "journal", 9) for error in ("ENOSPC", "EIO")),
    Fault("fdatasync,fsync", "EIO", "journal", 5),
    *(Fault("pwrite64", error, "any", 9) for error in ("ENOSPC", "EIO")),
    Fault("fdatasync,fsync", "EIO", "any", 9),
    Fault(RENAMES, "EIO", "any", 6),
    Fault(RENAMES, "ENOSPC", "any", 6),
    Fault("openat", "EMFILE", "any", 6),
    Fault("openat", "EACCES", "any", 6),
    Fault("mkdirat", "ENOSPC", "any"),
    Fault(SENDS, "ECONNRESET", "any", 5),
    Fault(SENDS, "EPIPE", "any", 5),
    Fault(RECEIVES, "ECONNRESET", "any", 5),
    Fault(RECEIVES, "EINTR", "any", 5),
    Fault("write", "ENOSPC", "log", 2),
    Fault(READS, "EIO", "source"),
)


@dataclass(frozen=True)
class Plan:
    """What a seed means: which fault, at its n-th call and, if it ``lasts``, ever after."""

    fault: Fault
    number: int
    lasts: bool
    full: bool  # the first disk is all data


def plan(seed: int) -> Plan:
    """Draw the fault by turns, so that each comes up, and the rest at random."""
    random = Random(seed)
    fault = FAULTS[seed * 7 % len(FAULTS)]
    lasts = random.random() < 0.4 and fault.error != "EINTR"
    return Plan(fault, random.randint(1, fault.calls), lasts, random.random() < 0.5)


def play(stage: Stage, seed: int) -> int:
    """Play what ``seed`` means; returns how many calls failed by it.

    Raises:
        AssertionError: Something does not hold.
    """
    return _Play(stage, seed).run()


class _Play:
    def __init__(self, stage: Stage, seed: int) -> None:
        self._plan = plan(seed)
        self._receiver = stage.pair.receiver
        self._sender = stage.pair.sender
        self._vm = f"vm{seed}"
        self._names = (self._vm, f"{self._vm}_1")
        self._log = stage.folder / f"{self._vm}.strace"
        make = make_data_disk if self._plan.full else make_disk
        folder = stage.folder
        self._disks = tuple(
            make(folder / f"{name}.raw", size, seed=seed)
            for name, size in zip(self._names, SIZES, strict=True)
        )

    def run(self) -> int:
        fault = self._plan.fault
        when = f"error={fault.error}:when={self._plan.number}{'+' * self._plan.lasts}"
        if fault.place == "source":
            sending = self._start()
            with injected(sending.pid, fault.call, when, self._disks[0], self._log):
                run = sending.wait()
        else:
            pid = self._receiver.process.pid
            with injected(pid, fault.call, when, self._path(), self._log):
                run = self._start().wait()
        self._judge(run)
        failed = self._log.read_text().count("INJECTED")
        self._complete()
        return failed

    def _path(self) -> Path | None:
        name = f"{self._vm}-flat.vmdk.flatship-part"
        places = {
            "disk": self._receiver.datastore / self._vm / name,
            "journal": self._receiver.state / "journal.db-wal",
            "log": self._receiver.process.log,
        }
        return places.get(self._plan.fault.place)

    def _start(self) -> Running:
        options = ("--quiet", "--connections", "2", *self._plan.fault.options)
        return self._sender.start_send(*self._disks, vm=self._vm, options=options)

    def _judge(self, run: CompletedRun) -> None:
        """The command with the fault has ended."""
        assert run.exit_code in EXIT_CODES, str(run)
        assert not self._receiver.process.ended, self._receiver.log
        check_logs(self._receiver)
        for name, disk, size in zip(self._names, self._disks, SIZES, strict=True):
            if self._receiver.descriptor(self._vm, name).exists():
                assert same_content(disk, self._receiver.flat(self._vm, name), size), str(run)
        if not run.stdout:  # it came to nothing before there was a disk to speak of
            assert run.exit_code, str(run)
            assert run.error, str(run)
            return
        for disk in run.disks:
            assert disk["published"] or disk["error"]["message"], str(run)
        if self._plan.fault.place in {"disk", "source"}:
            assert run.disks[1]["published"], str(run)

    def _complete(self) -> None:
        """The fault is gone: the same command, once more where a disk is not let go of yet."""
        codes: set[str] = set()

        def is_done() -> bool:
            nonlocal codes
            run = self._start().wait()
            codes = {disk["error"]["code"] for disk in run.disks if disk["error"]}
            assert codes <= {"disk_exists", "disk_busy"}, str(run)
            return "disk_busy" not in codes

        wait_until(is_done, "all disks are let go of")
        for name, disk, size in zip(self._names, self._disks, SIZES, strict=True):
            assert same_content(disk, self._receiver.flat(self._vm, name), size), name
            same_to_qemu(disk, self._receiver.descriptor(self._vm, name))
        check_logs(self._receiver)
