"""How chunks are to be coded now: what makes the slower of link and processor fastest. Pure.

On a rung of the ladder the disk advances at ``min(processor, link * ratio)`` bytes a second. Each
factor is learned from what happens: what a byte costs and yields, from each chunk that was coded;
the link's rate, from what it took while it held chunks up. A link that holds nothing up while
compression has all the workers is faster than was thought, by how much is found in strides; one
that idles for another reason, a slow source or a receiver that stores slowly, says nothing.

Where two rungs keep the link busy, the one that yields more is better: it must only be certain
that the processors keep up, more certain before a change to it than while it is in force. A costly
rung that was to be much faster and is not is left again: it was not the link that was slow, but
the receiver behind it.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.looks import Look, Window
from flatship_sender.rungs import ALONE, WITH_HISTORY, Rung

Policy: TypeAlias = Literal["auto", "off"] | int

MIN_LEVEL: Final = -7
MAX_LEVEL: Final = 19
FIRST_HISTORY_LEVEL: Final = 1  # below it a frame of its own is quicker, and yields as much


CPU_PER_BYTE: Final = 1 / 1.5e9  # seconds of a core for all but compression, before it is known
CPU_PER_BYTE_BOUNDS: Final = (1 / 5e9, 1 / 1e8)
CPU_TO_SPARE: Final = 1 / 1e9  # seconds of a core to look for a byte among those that were sent
LEAST_CORES: Final = 0.25
PROBE_INTERVAL: Final = 32  # chunks sent raw between two that are compressed to learn from
PROBE: Final = ALONE[3]
BESIDE_COPIES: Final = ALONE[4]
FIRST: Final = 16  # chunks that are probes: raw they would clog a slow link before it is known

LOOK_BYTES: Final = 6 << 20  # on the wire: less says little of a rate, for chunks go whole
FIRST_LOOK_BYTES: Final = 1 << 20
LOOK_SECONDS: Final = (0.25, 2.0)  # between two looks, at least and at most
SETTLING: Final = 0.3  # seconds after a change that still show what was before it
IDLE: Final = 0.5  # share of the time that a link holds chunks up; with less it idles
HELD_UP: Final = 0.9  # share of the time; a link that holds chunks up for so long is full
WORKING: Final = 0.6  # share of the time that compression may use; then it holds up the link
FASTER: Final = 0.95  # of the assumed rate; a link that idles with less did so for want of chunks
STRIDE: Final = 8.0  # growth of the assumed link rate from one look to the next
OTHER_LINK: Final = 1.5  # a link so many times slower is another one, and no error
MARGIN: Final = 1.05  # by which processors must keep up with the link on the rung in force
MARGIN_TO_CLIMB: Final = 1.1  # and on a costlier one
GAIN_TO_CHANGE: Final = 1.01
CHEAPER: Final = 0.995  # of the present rate; then what costs less is better
GAIN_TO_HASTEN: Final = 1.3  # with less than that a change waits for DWELL after the last one
DWELL: Final = 2.0  # seconds
WORTH_OF_HISTORY: Final = 96 << 20  # bytes of disk; a change for little forgets that much
GAIN_TO_TRY: Final = 1.15  # a change that promises more is on trial
TRIAL_SHARE: Final = 0.3  # of the gain that it promised, or it is taken back
TRIAL_LOSS: Final = 0.5  # a rate that fell below this share of itself did so for another reason
HOLD: Final = (10.0, 160.0)  # seconds that costlier rungs are barred for, at first and at most
MACHINE_WEIGHT: Final = 0.08  # of the newest chunk, for all rungs; and for its own
OWN_WEIGHT: Final = 0.03
MACHINE_BOUNDS: Final = (0.02, 50.0)
OWN_BOUNDS: Final = (0.5, 2.0)
DISK_WEIGHT: Final = 0.05
LEAST_SHARE: Final = 0.01  # of a chunk; nothing is thought to shrink to less
EFFICIENCY_BOUNDS: Final = (0.2, 1.2)
FORGIVEN: Final = 60.0  # seconds after which processors are thought to achieve what they should


class CompressionController:
    """Chooses a rung for each chunk.

    Args:
        policy: ``auto``, ``off``, or a fixed zstd level.
        workers: How many of them compress at once.
    """

    def __init__(self, policy: Policy, workers: int) -> None:
        self._policy = policy
        self._workers = workers
        self._streams = 0
        self._ladder = ALONE
        self._rung = ALONE[0]
        self._cores = float(workers)
        self._machine = 1.0  # what a byte costs, in terms of the table
        self._own: dict[Rung, float] = {}  # and on one rung, in terms of both
        self._disk = 1.0  # what compression saves, in terms of the table
        self._other = CPU_PER_BYTE
        self._efficiency = 1.0  # of processors: what was achieved, in terms of the model
        self._link: float | None = None
        self._first = FIRST
        self._raw_in_a_row = 0
        self._now = 0.0  # the sum of all windows
        self._changed_at = -DWELL
        self._sent = 0  # bytes of disk since then
        self._look = Look()
        self._starved = False  # in the last look, by the rung in force
        self._trial: _Trial | None = None
        self._bar: _Bar | None = None
        self._hold = HOLD[0]

    def grant(self, streams: int) -> None:
        """A session stands in which so many connections may carry streams with history."""
        self._streams = streams
        self._ladder = WITH_HISTORY if streams else ALONE
        if self._rung not in self._ladder:
            at_most = [rung for rung in self._ladder if rung.ratio <= self._rung.ratio]
            self._change(at_most[-1])

    @property
    def rung(self) -> Rung:
        """The rung in force."""
        if self._policy == "auto":
            return self._rung
        level = None if self._policy == "off" else self._policy
        if level is None:
            return ALONE[0]
        history = self._streams > 0 and level >= FIRST_HISTORY_LEVEL
        nearest = min(ALONE[1:], key=lambda rung: abs((rung.level or 0) - level))
        return Rung(level, nearest.speed, nearest.ratio, history)

    @property
    def link_is_slow(self) -> bool:
        """Whether sending less is worth a worker's time: the link carries less than those can do.

        A chunk that waits does not show that. Where the receiver stores slowly, or is this same
        machine, chunks wait for processors, and longer for each thing more that is done to them.
        """
        if self._policy not in ("auto", "off"):
            return True
        cores = min(self._cores, self._workers)
        return self._link is not None and self._link < cores / (self._other + CPU_TO_SPARE)

    @property
    def link_is_known(self) -> bool:
        """Whether the link has been seen to be full, and how fast it is then."""
        return self._link is not None

    @property
    def level_beside_copies(self) -> int | None:
        """The level for what little travels beside copies, where the rest would go raw."""
        return None if self._policy == "off" else BESIDE_COPIES.level

    def next_rung(self) -> Rung:
        """The rung for the next chunk; at first, and now and then where it is raw, a probe."""
        rung = self.rung
        if self._policy == "auto" and self._first:
            self._first -= 1
            return PROBE
        if self._policy != "auto" or rung.level is not None or self._link is None:
            return rung
        self._raw_in_a_row += 1
        if self._raw_in_a_row < PROBE_INTERVAL:
            return rung
        self._raw_in_a_row = 0
        return self._ladder[1]

    def note_chunk(
        self,
        rung: Rung,
        literal: int,
        payload: int,
        seconds: float,
        *,
        coded: bool = True,
    ) -> None:
        """Learn from one chunk.

        Args:
            rung: How it was to be coded.
            literal: Bytes before.
            payload: Bytes after.
            seconds: A processor's time for it.
            coded: False: a look at it was enough to know that it does not shrink.
        """
        self._look.coding += max(0.0, seconds)
        if rung.level is None or rung not in self._ladder or not literal or not payload:
            return
        saved = max(0.0, 1 - payload / literal) / (1 - 1 / rung.ratio)
        self._disk += DISK_WEIGHT * (saved - self._disk)
        if coded and seconds > 0:
            off = seconds / literal / self._cost(rung)
            self._machine = _within(self._machine * off**MACHINE_WEIGHT, MACHINE_BOUNDS)
            own = self._own.get(rung, 1.0) * off**OWN_WEIGHT
            self._own[rung] = _within(own, OWN_BOUNDS)

    def note_window(self, window: Window) -> None:
        """Learn from a stretch of time, and look, if enough was seen, whether to change."""
        if window.seconds <= 0:
            return
        self._now += window.seconds
        self._sent += window.sent
        if window.cores is not None:
            self._cores += 0.5 * (max(window.cores, LEAST_CORES) - self._cores)
        if self._now - self._changed_at <= SETTLING:
            self._look = Look()
            return
        look = self._look
        look.add(window)
        if not self._is_enough(look):
            return
        full = look.held_up >= HELD_UP * look.seconds
        if look.wire == 0:  # not one chunk has gone
            if not full:
                self._look = Look()
                return
            look.wire = look.sent = CHUNK_SIZE
        self._look = Look()
        self._learn(look, full=full)
        if self._policy == "auto" and not self._take_back(look, full=full):
            self._choose()

    def _is_enough(self, look: Look) -> bool:
        """Whether a look says something; of a link that idles it need not say much."""
        shortest, longest = LOOK_SECONDS
        if look.seconds >= longest:
            return True
        if self._link is None:
            return look.seconds >= shortest and look.wire >= FIRST_LOOK_BYTES
        idles = look.held_up < IDLE * look.seconds
        return look.seconds >= 2 * shortest if idles else look.wire >= LOOK_BYTES

    def _learn(self, look: Look, *, full: bool) -> None:
        rate = look.wire / look.seconds
        starving = not full and self._is_working(look)
        self._starved = starving
        if look.used is not None and look.sent and look.coding < 0.7 * look.used:
            other = _within((look.used - look.coding) / look.sent, CPU_PER_BYTE_BOUNDS)
            self._other += 0.2 * (other - self._other)
        self._learn_link(look, rate, full=full, starving=starving)
        achieved = look.sent / look.seconds
        promised = self._processor(self._rung)
        if starving:
            off = _within(achieved / promised, (0.25, 1.0)) ** 0.6
            self._efficiency = _within(self._efficiency * off, EFFICIENCY_BOUNDS)
        elif achieved > promised:
            off = achieved / promised
            self._efficiency = _within(self._efficiency * off, EFFICIENCY_BOUNDS)
        else:
            self._efficiency += min(1.0, look.seconds / FORGIVEN) * (1.0 - self._efficiency)

    def _learn_link(self, look: Look, rate: float, *, full: bool, starving: bool) -> None:
        if full:
            sample = rate * look.seconds / look.held_up
            if self._link is None or sample * OTHER_LINK < self._link:
                self._link = sample
            else:
                self._link += 0.5 * (sample - self._link)
        elif self._link is not None:
            at_most = look.wire / max(look.held_up, 1e-3)
            if starving and rate >= FASTER * self._link < at_most:
                self._link = min(at_most, max(self._link, rate) * STRIDE)
            else:
                self._link = max(self._link, rate)

    def _is_working(self, look: Look) -> bool:
        """Whether it is compression that holds the link up."""
        if self._rung.level is None or look.compressing < 0.3 * look.working:
            return False
        at_once = min(self._workers, self._streams) if self._rung.history else self._workers
        return (
            look.compressing >= WORKING * at_once * look.seconds
            or look.working >= 0.75 * self._workers * look.seconds
        )

    def _take_back(self, look: Look, *, full: bool) -> bool:
        """End a trial; True if the change was no good, and is undone."""
        trial, self._trial = self._trial, None
        if trial is None or not full:  # an idle link: it is the processors that are slow
            return False
        # Of the wire, and not of the disk: chunks that were coded before the change are still sent.
        achieved = look.wire / look.seconds / trial.link * trial.gain
        if achieved >= 1 + TRIAL_SHARE * (trial.gain - 1) or achieved < TRIAL_LOSS:
            self._hold = HOLD[0]
            return False
        self._hold_below(trial.rung, trial.link)
        self._link = trial.link
        self._change(trial.rung)
        return True

    def _choose(self) -> None:
        if self._link is None:
            return
        present = self._value(self._rung)
        best = max(self._allowed(), key=self._value)
        gain = self._value(best) / present
        if gain <= GAIN_TO_CHANGE:
            # None is faster, but one that is as fast may cost less.
            best = next(rung for rung in self._allowed() if self._value(rung) >= CHEAPER * present)
            gain = 1.0
        if best is self._rung:
            return
        if gain < GAIN_TO_HASTEN and not self._has_stayed(best):
            return
        if self._costlier(best):
            if gain >= GAIN_TO_TRY:
                self._trial = _Trial(self._rung, gain, self._link)
        elif self._starved:
            self._hold_below(best, self._link)
        self._change(best)

    def _has_stayed(self, best: Rung) -> bool:
        """Whether the rung in force has been for long enough; of streams, until they paid off."""
        if self._now - self._changed_at < DWELL:
            return False
        streams = best.history and self._rung.history and self._costlier(best)
        return not streams or self._sent >= WORTH_OF_HISTORY

    def _hold_below(self, rung: Rung, link: float) -> None:
        """Bar what is costlier, for longer each time that it has proved too costly."""
        self._bar = _Bar(rung, self._now + self._hold, link)
        self._hold = min(2 * self._hold, HOLD[1])

    def _allowed(self) -> list[Rung]:
        bar = self._bar
        if bar is not None and self._link is not None and self._link * OTHER_LINK < bar.link:
            bar, self._hold = None, HOLD[0]  # the link is another one
        if bar is not None and (self._now >= bar.until or bar.rung not in self._ladder):
            bar = None
        self._bar = bar
        if bar is None:
            return list(self._ladder)
        return list(self._ladder[: self._ladder.index(bar.rung) + 1])

    def _change(self, rung: Rung) -> None:
        self._rung = rung
        self._changed_at, self._sent = self._now, 0
        self._look = Look()

    def _costlier(self, rung: Rung) -> bool:
        return self._ladder.index(rung) > self._ladder.index(self._rung)

    def _value(self, rung: Rung) -> float:
        """Bytes of disk a second that are certain enough."""
        assert self._link is not None
        margin = MARGIN_TO_CLIMB if self._costlier(rung) else MARGIN
        share = max(LEAST_SHARE, 1 - (1 - 1 / rung.ratio) * self._disk)
        return min(self._processor(rung) / margin, self._link / share)

    def _processor(self, rung: Rung) -> float:
        """Bytes of disk a second that the processors can bring on their way."""
        if rung.level is None:
            return self._workers / self._other
        cost = self._cost(rung)
        cores = float(self._workers)
        if self._rung.level is None:  # nothing has shown yet what we get if we want it
            cores = min(cores, self._cores)
        rate = self._efficiency * cores / (cost + self._other)
        return min(rate, self._streams / cost) if rung.history else rate

    def _cost(self, rung: Rung) -> float:
        """Seconds of a core for the compression of a byte."""
        return self._machine * self._own.get(rung, 1.0) / rung.speed


@dataclass(frozen=True, slots=True)
class _Trial:
    """A change that must show what it promised: from where, and what was before."""

    rung: Rung
    gain: float
    link: float


@dataclass(frozen=True, slots=True)
class _Bar:
    """No costlier rung than this, for a while, or until the link is another one."""

    rung: Rung
    until: float
    link: float


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(bounds[1], max(bounds[0], value))
