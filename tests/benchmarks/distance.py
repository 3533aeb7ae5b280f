"""How much of a long, fast link is used: through a proxy that delays what it passes on."""

import os
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Final

from benchmarks.flatship_pair import NO_PROOF, RECEIVER, SENDER
from benchmarks.long_link import LongLink
from benchmarks.processes import free_port, run, serving

DELAY: Final = 0.1  # seconds, each way
RATE: Final = 125_000_000  # bytes a second
SIZE: Final = 2 << 30  # bytes; of noise, so that the link has all of them to carry
MIB: Final = 1 << 20
BEGINNING: Final = 0.2  # of the bytes; handshakes, and the first windows, are before the rest
END: Final = 0.999  # of the bytes; then come only words


def distance(rounds: int) -> list[str]:
    """The share of a link of 1 Gbit/s that is used over 200 ms; on tmpfs, not read again."""
    lines = [
        f"{SIZE / MIB:.0f} MiB of noise. The whole is from the first byte of the first handshake to"
        " the last of the disk, opening it and all connections included; starting the programs is"
        " not.",
        "",
        "| share of the link, after a fifth of the disk | over the whole disk"
        " | seconds until a hundredth had come | sender's peak RSS | receiver's peak RSS |",
        "|---|---|---|---|---|",
    ]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="flatship-bench-") as name:
            arrivals, peaks = _transfer(Path(name))
        figures = [
            *(f"{share:.1%}" for share in arrivals.shares()),
            f"{arrivals.seconds_until(0.01):.1f}",
            *(f"{each / MIB:.0f} MiB" for each in peaks),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return lines


def _transfer(place: Path) -> "tuple[_Arrivals, tuple[int, int]]":
    """What came when, and peaks of memory at the sender and the receiver."""
    source, target = place / "noise.raw", place / "target"
    target.mkdir()
    with source.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
    address = f"127.0.0.1:{free_port()}"
    state = ("--state", place / "receiver")
    listening = ("--listen", address, "--http", "127.0.0.1:0", "--datastore", f"bench={target}")
    serve = (RECEIVER, "serve", *state, *listening, *NO_PROOF)
    with (
        serving(serve, place / "receiver.log", lambda said: address in said) as receiver,
        LongLink(address, DELAY, RATE) as link,
    ):
        invite = (RECEIVER, "invite", *state, "--name", "bench", "--address", link.address)
        (place / "invitation").write_text(run(invite).output)
        sender = ("--state", place / "sender")
        run((SENDER, "join", *sender, "--as", "bench", place / "invitation"))
        with _Arrivals(link) as arrivals:
            finished = run(
                (SENDER, "send", *sender, source, "--to", "bench", "--vm", "guest", "--quiet")
            )
        peaks = (finished.usage.peak_rss, receiver.usage().peak_rss)
    return arrivals, peaks


class _Arrivals:
    """Notes how much has come through a link, again and again, while the block runs."""

    def __init__(self, link: LongLink) -> None:
        self._link = link
        self._before = link.passed
        self._looks: list[tuple[float, int]] = []
        self._over = Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> "_Arrivals":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self._looks.append((time.monotonic(), self._link.passed - self._before))

    def shares(self) -> tuple[float, float]:
        """Of the link's rate: after the beginning, and from the first byte to the last."""
        first, begun, ended = self._first(), self._at(BEGINNING), self._at(END)
        return _rate(begun, ended) / RATE, _rate(first, ended) / RATE

    def seconds_until(self, part: float) -> float:
        """From the first byte until that part of all had come."""
        return self._at(part)[0] - self._first()[0]

    def _first(self) -> tuple[float, int]:
        return next(look for look in self._looks if look[1])

    def _at(self, part: float) -> tuple[float, int]:
        total = self._looks[-1][1]
        return next(look for look in self._looks if look[1] >= part * total)


def _rate(start: tuple[float, int], end: tuple[float, int]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
