"""A model of what the compression controller steers: coders, a few coded chunks, a link.

Chunks are coded one by one, each in so much time and into so many bytes as its rung says, with
noise; at most ``DEPTH`` of them wait for the link. The controller sees what the product tells it,
a window at a time, and the truth is known beside it.
"""

from dataclasses import dataclass, field
from random import Random

from flatship_sender.compression import CPU_PER_BYTE, CompressionController, Policy
from flatship_sender.looks import Window
from flatship_sender.rungs import WITH_HISTORY, Rung

MIB = 1 << 20
MBIT = 1e6 / 8  # bytes per second
TICK = 0.01  # seconds
WINDOW = 25  # ticks
DEPTH = 4  # coded chunks: two lanes, in each one that is sent and one that waits
CORES = 2


@dataclass
class _Coding:
    rung: Rung
    left: float  # processor seconds
    total: float
    payload: int
    begun: float


@dataclass
class Path:
    """A disk's way from the coders to the receiver.

    Args:
        link: Bytes a second.
        machine: So many times as fast as the table's.
        disk: So many times as compressible.
        cores: For the coders; others may want the rest.
        receiver: Bytes of disk a second that the receiver takes at most.
        source: And that the source gives.
        noise: Standard deviation of what chunks cost and yield, and of the link's rate.
    """

    link: float
    machine: float = 1.0
    disk: float = 1.0
    cores: float = 2.0
    receiver: float = 1e12
    source: float = 1e12
    noise: float = 0.15
    streams: int = 2
    policy: Policy = "auto"
    seed: int = 1
    now: float = 0.0
    sent: float = 0.0
    wire: float = 0.0
    rungs: list[tuple[float, Rung]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.controller = CompressionController(self.policy, CORES)
        self.controller.grant(self.streams)
        self._coders: list[_Coding | None] = [None] * CORES
        self._queue: list[list[float]] = []  # bytes of payload left, of payload in all
        self._given = 0.0
        self._window = [0.0] * 6
        self._ticks = 0

    def ratio(self, rung: Rung) -> float:
        return 1 / (1 - (1 - 1 / rung.ratio) * self.disk)

    def cost(self, rung: Rung) -> float:
        return 1 / (rung.speed * self.machine)

    def steady(self, rung: Rung) -> float:
        """Bytes of disk a second on one rung for ever."""
        cpu = self.cores / (self.cost(rung) + CPU_PER_BYTE)
        return min(cpu, self.link * self.ratio(rung), self.receiver, self.source)

    @property
    def best(self) -> float:
        return max(self.steady(rung) for rung in WITH_HISTORY)

    def run(self, seconds: float) -> float:
        """Let time pass; returns bytes of disk a second."""
        before = self.sent
        for _ in range(round(seconds / TICK)):
            self._tick()
        return (self.sent - before) / seconds

    def _noisy(self, value: float) -> float:
        return value * max(0.2, self.random.gauss(1.0, self.noise))

    def _tick(self) -> None:
        self.now += TICK
        self._code()
        held_up = self._send()
        window = self._window
        window[3] += held_up
        self._ticks += 1
        if self._ticks % WINDOW == 0:
            seconds = WINDOW * TICK
            self.controller.note_window(
                Window(
                    seconds,
                    int(window[0]),
                    int(window[1]),
                    window[3],
                    window[4],
                    window[5],
                    window[2],
                    self.cores,
                )
            )
            self._window = [0.0] * 6
            self.rungs.append((self.now, self.controller.rung))

    def _code(self) -> None:
        shares = [self.cores / CORES * TICK] * CORES
        for number, share in enumerate(shares):
            left, spent = share, 0.0
            while left > 0:
                coding = self._coders[number]
                if coding is None:
                    if not self._may_begin():
                        break
                    coding = self._coders[number] = self._begin(number)
                step = min(left, coding.left)
                coding.left -= step
                left -= step
                spent += step
                if coding.left > 1e-9:
                    break
                self._coders[number] = None
                self._queue.append([float(coding.payload)] * 2)
                stretch = CORES / self.cores
                if coding.rung.level is not None:
                    compress = coding.total - CPU_PER_BYTE * MIB
                    self.controller.note_chunk(coding.rung, MIB, coding.payload, compress)
                    self._window[4] += compress * stretch
            self._window[5] += spent * CORES / self.cores
            self._window[2] += spent

    def _may_begin(self) -> bool:
        coding = sum(each is not None for each in self._coders)
        depth = DEPTH if self.controller.rung.history else 2 * DEPTH
        if len(self._queue) + coding >= depth:
            return False
        return self._given + MIB <= self.source * self.now

    def _begin(self, number: int) -> _Coding:
        rung = self.controller.next_rung()
        self._given += MIB
        total = self._noisy(self.cost(rung) * MIB) + CPU_PER_BYTE * MIB
        payload = int(MIB / (1 + self._noisy(self.ratio(rung) - 1)))
        return _Coding(rung, total, total, payload, self.now)

    def _send(self) -> float:
        room = self._noisy(self.link) * TICK
        taken = self.receiver * TICK
        budget = room
        while self._queue and budget > 0 and taken > 0:
            chunk = self._queue[0]
            share = MIB / chunk[1]
            step = min(budget, chunk[0], taken / share)
            chunk[0] -= step
            budget -= step
            taken -= step * share
            self.wire += step
            self.sent += step * share
            self._window[0] += step
            self._window[1] += step * share
            if chunk[0] > 1e-6:
                return TICK
            self._queue.pop(0)
        return TICK * (1 - max(0.0, budget) / room)
