"""A whole transfer between two real processes, beside the programs a user would pick instead.

    python -m benchmarks.bench_pair [SCENARIO...] [--rounds N]

Contestants take turns, round after round; ratios are taken within a round, so
that a machine that slows down slows all of them. Each scenario's docstring says
what it bounds; its result goes to ``results/``.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import disk, profile_cpu, report
from benchmarks.bare import BarePair
from benchmarks.contest import Contestant, Entry, Result, Run, cold_caches, compete, table
from benchmarks.disk import GIB, TIB, Disk
from benchmarks.distance import distance
from benchmarks.flatship_pair import NO_PROOF, UNJOURNALLED, FlatshipPair
from benchmarks.interrupted import interrupt
from benchmarks.peers import all_peers
from benchmarks.processes import Usage, exit_when_terminated, run, shown
from benchmarks.watched import SCRAPED, watched_by
from benchmarks.workplace import Workplace, workplace

_MEMORY = Path("/dev/shm")


def data_path(rounds: int) -> list[str]:
    """The data path alone, on tmpfs: encrypted, authenticated, digested, not read again."""
    with workplace(_MEMORY) as place:
        guest = disk.copy_sparse(disk.guest_disk(), place.scratch / "guest.raw")
        peers = all_peers(place.scratch)
        flatship = FlatshipPair(place.scratch, serve_options=NO_PROOF)
        entries = [
            Entry("nbdcopy", peers["nbdcopy"], guest),
            Entry("nbdcopy TLS", peers["nbdcopy TLS"], guest),
            Entry("the bare work", BarePair(place.scratch), guest),
            Entry("Flatship, no re-read", flatship, guest),
        ]
        return _compared(entries, place, rounds)


def whole(rounds: int) -> list[str]:
    """A transfer as users run it, disk to disk, caches cold: synced, proven, published."""
    with workplace(disk.cache_folder()) as place:
        guest = disk.guest_disk()
        peers = all_peers(place.scratch)
        entries = [
            Entry("nbdcopy --flush", peers["nbdcopy --flush"], guest),
            Entry("qemu-img convert", peers["qemu-img convert"], guest),
            Entry("Flatship", FlatshipPair(place.scratch), guest),
        ]
        return _compared(entries, place, rounds, before=cold_caches)


def viewers(rounds: int) -> list[str]:
    """What it costs a transfer that 200 look at the receiver's page, or that it is scraped."""
    with workplace(_MEMORY) as place:
        dense = disk.dense_file(disk.guest_disk(), 2 * GIB)
        guest = disk.copy_sparse(dense, place.scratch / "dense.raw")
        watchers = {"nobody looks": None, "200 viewers": "200", "scraped each second": SCRAPED}
        entries = [
            Entry(
                name,
                FlatshipPair(place.scratch, send_options=("--compression", "off"))
                if whom is None
                else FlatshipPair(
                    place.scratch,
                    send_options=("--compression", "off"),
                    observe_receiver=watched_by(whom),
                ),
                guest,
            )
            for name, whom in watchers.items()
        ]
        return _compared(entries, place, rounds)


def images(rounds: int) -> list[str]:
    """Disk images beside the raw disk that they hold: the data path alone, on tmpfs."""
    with workplace(_MEMORY) as place:
        guest = disk.copy_sparse(disk.guest_disk(), place.scratch / "guest.raw")
        pair = FlatshipPair(place.scratch, serve_options=NO_PROOF)
        entries = [Entry("raw", pair, guest)]
        for kind in ("qcow2", "vmdk"):
            image = place.scratch / f"guest.{kind}"
            run(["qemu-img", "convert", "-f", "raw", "-O", kind, guest.path, image])
            entries.append(Entry(kind, Image(pair, image), guest))
        return _compared(entries, place, rounds)


def journal(rounds: int) -> list[str]:
    """What the record of chunks costs on the data path, tmpfs; the record itself is on disk."""
    with workplace(_MEMORY) as place, workplace(disk.cache_folder()) as on_disk:
        guest = disk.copy_sparse(disk.guest_disk(), place.scratch / "guest.raw")
        without = FlatshipPair(on_disk.scratch, NO_PROOF, UNJOURNALLED)
        entries = [
            Entry("without the record", without, guest),
            Entry("Flatship, no re-read", FlatshipPair(on_disk.scratch, NO_PROOF), guest),
        ]
        return _compared(entries, place, rounds)


def resume(rounds: int) -> list[str]:
    """A receiver killed at half of the disk and started again, disk to disk, caches cold."""
    guest = disk.guest_disk()
    lines = [
        "| on record when killed | sent, not acknowledged | held at the second session"
        " | first write after | reading that much again |",
        "|---|---|---|---|---|",
    ]
    for _ in range(rounds):
        with workplace(disk.cache_folder()) as place:
            found = interrupt(guest, place.scratch, place.target)
        sizes = (found.on_record, found.resent, found.held)
        lines.append(
            "".join(f"| {size / disk.MIB:.0f} MiB " for size in sizes)
            + f"| {found.first_write:.1f} s | {found.reread:.1f} s |"
        )
    return lines


def every_peer(rounds: int) -> list[str]:
    """What a user would pick instead, all of it, disk to disk, caches cold."""
    with workplace(disk.cache_folder()) as place:
        guest = disk.guest_disk()
        contestants: dict[str, Contestant] = {
            "Flatship": FlatshipPair(place.scratch),
            **all_peers(place.scratch),
        }
        entries = [Entry(name, contestant, guest) for name, contestant in contestants.items()]
        return _compared(entries, place, rounds, before=cold_caches)


def sparse(rounds: int) -> list[str]:
    """What 8 TiB of holes cost beyond the 1 GiB of data among them."""
    with workplace(disk.cache_folder()) as place:
        guest = disk.guest_disk()
        flatship = FlatshipPair(place.scratch)
        entries = [
            Entry("1 GiB of data", flatship, disk.dense_file(guest, GIB)),
            Entry("the same in 8 TiB", flatship, disk.scattered_file(guest, GIB, 8 * TIB, 64)),
        ]
        results = compete(entries, place.target, rounds=rounds)
        overhead = results[1].seconds - results[0].seconds
        return [*_described(results, place), "", f"Overhead of the holes: {overhead:.2f} s."]


def zeros(rounds: int) -> list[str]:
    """A block device of 8 GiB that is all zeros and cannot say so, against merely reading it."""
    with workplace(disk.cache_folder()) as place, _loop_device(place, 8 * GIB) as device:
        entries = [
            Entry("dd bs=1M of=/dev/null", ReadOnly(), device),
            Entry("Flatship", FlatshipPair(place.scratch), device),
        ]
        return _compared(entries, place, rounds, before=cold_caches)


def profile(rounds: int) -> list[str]:
    """Where the processor's time goes on the data path; sampling slows it down."""
    with workplace(_MEMORY) as place:
        guest = disk.copy_sparse(disk.guest_disk(), place.scratch / "guest.raw")
        sender, receiver = place.scratch / "sender.folded", place.scratch / "receiver.folded"
        flatship = FlatshipPair(
            place.scratch,
            serve_options=NO_PROOF,
            sender_prefix=profile_cpu.recording(sender),
            observe_receiver=functools.partial(profile_cpu.attached, output=receiver),
        )
        compete([Entry("Flatship, profiled", flatship, guest)], place.target, rounds=rounds)
        lines = ["Samples of the last round.", "", "Sender:", "", *profile_cpu.hottest(sender)]
        return [*lines, "", "Receiver:", "", *profile_cpu.hottest(receiver)]


SCENARIOS: dict[str, tuple[Callable[[int], list[str]], int]] = {  # and how many rounds
    "data-path": (data_path, 7),
    "whole": (whole, 5),
    "sparse": (sparse, 3),
    "zeros": (zeros, 3),
    "images": (images, 5),
    "journal": (journal, 7),
    "resume": (resume, 3),
    "distance": (distance, 3),
    "viewers": (viewers, 5),
    "profile": (profile, 1),
    "every-peer": (every_peer, 1),
}


@dataclass(slots=True)
class ReadOnly:
    """The floor under anything that must look at every byte of a device."""

    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``; nothing is written."""
        at_start()
        dd = ["dd", f"if={disk.path}", "of=/dev/null", "bs=1M", "status=none"]
        self.command = shown(dd)
        finished = run(dd)
        return Run(finished.seconds, finished.usage, Usage(0.0, 0)), None


@dataclass(slots=True)
class Image:
    """Sends an image of the disk in its place."""

    pair: FlatshipPair
    image: Path
    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        done = self.pair.transfer(replace(disk, path=self.image), folder, at_start)
        self.command = self.pair.command
        return done


@contextlib.contextmanager
def _loop_device(place: Workplace, size: int) -> Iterator[Disk]:
    backing = place.scratch / "zeros.raw"
    with backing.open("wb") as file:
        file.truncate(size)
    device = run(
        ["losetup", "--find", "--show", "--read-only", "--direct-io=on", backing]
    ).output.strip()
    try:
        yield Disk(Path(device), size, data=size)
    finally:
        run(["losetup", "--detach", device])


def _compared(
    entries: list[Entry],
    place: Workplace,
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> list[str]:
    return _described(compete(entries, place.target, rounds=rounds, before=before), place)


def _described(results: list[Result], place: Workplace) -> list[str]:
    commands = place.shown(result.command for result in results)
    return [*table(results, results[0]), *commands]


def guest_line() -> str:
    guest = disk.guest_disk()
    return (
        f"Guest disk: {guest.size / GIB:.0f} GiB, {guest.data / GIB:.2f} GiB of it data,"
        f" SHA-256 {guest.sha256()}."
    )


def main() -> None:
    """Run the scenarios named on the command line, or all of them."""
    parser = argparse.ArgumentParser(prog="bench_pair", description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, help="instead of each scenario's own number")
    chosen = parser.parse_args()
    if unknown := set(chosen.scenarios) - set(SCENARIOS):
        parser.error(
            f"unknown scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}"
        )
    exit_when_terminated()
    of_guest = guest_line()
    for name in chosen.scenarios or SCENARIOS:
        scenario, rounds = SCENARIOS[name]
        print(f"{name}: {scenario.__doc__}", file=sys.stderr)
        body = scenario(chosen.rounds or rounds)
        arguments = ["python", "-m", "benchmarks.bench_pair", name]
        path = report.write(name, f"{scenario.__doc__}\n\n{of_guest}", arguments, body)
        print(path.read_text())


if __name__ == "__main__":
    main()
