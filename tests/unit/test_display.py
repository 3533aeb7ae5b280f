import asyncio
import io
import re
import sys
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from flatship_sender import figures
from flatship_sender.bars import LiveBars, fitting, visible
from flatship_sender.convergence import Convergence, PassFigures, PassReport
from flatship_sender.display import (
    LOG_LINE_INTERVAL,
    LogLines,
    Silent,
    choose_display,
    following,
)
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.stalls import Stall, WaitsFor
from flatship_service.meter import ETA_SPAN, MIN_SPAN, Meter, seconds_left
from flatship_service.units import format_duration

MB = 1_000_000
GB = 1000 * MB
HOSTILE = "db\x1b[2J[red]\r\n\x07\u202e"


def disk(target: str = "root", state: TransferState = TransferState.SENDING, **counts: Any) -> Any:
    return DiskProgress("/dev/vg0/x", target, 10 * GB, state, **counts)


def transfer(*disks: DiskProgress) -> TransferProgress:
    return TransferProgress("esx1", "web01", list(disks))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class HungUp(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody looks")


# figures


def test_rate_is_unknown_until_it_means_something() -> None:
    meter = Meter()
    assert meter.rate() is None
    meter.add(0.0, 0)
    meter.add(MIN_SPAN - 0.1, 100)
    assert meter.rate() is None
    meter.add(MIN_SPAN, 300)
    assert meter.rate() == pytest.approx(300 / MIN_SPAN)


def test_rate_forgets_what_is_older_than_its_span() -> None:
    meter = Meter()
    for second in range(200):
        meter.add(float(second), 1000 * min(second, 100))
    assert meter.rate(10.0) == 0
    assert meter.rate(ETA_SPAN) == 0
    for second in range(200, 211):
        meter.add(float(second), 100_000 + 50 * (second - 200))
    assert meter.rate(10.0) == 50


def test_rate_is_never_negative_when_a_count_begins_again() -> None:
    meter = Meter()
    for second in range(10):
        meter.add(float(second), 1000 * second)
    meter.add(10.0, 0)
    assert meter.rate() is None


def test_a_hole_raises_no_rate() -> None:
    meters, progress = figures.TransferMeters(), transfer(disk())
    for second in range(5):
        progress.disks[0].skipped_hole += GB
        meters.look(progress, float(second))
    assert meters.disks[0].rate(progress.disks[0]) == 0
    assert meters.disks[0].eta(progress.disks[0]) is None


@pytest.mark.parametrize(
    ("remaining", "rate", "seconds"),
    [(100, None, None), (100, 0.0, None), (100, 10.0, 10.0), (-5, 10.0, 0.0), (10**18, 1.0, None)],
)
def test_time_left_is_positive_or_unknown(
    remaining: int, rate: float | None, seconds: float | None
) -> None:
    assert seconds_left(remaining, rate) == seconds


def test_proof_has_its_own_rate_and_time_left() -> None:
    meters, shown = figures.DiskMeters(), disk(acked=10 * GB)
    for second in range(20):
        meters.look(shown, float(second))
    shown.state, shown.to_prove = TransferState.PROVING, 10 * GB
    for second in range(20, 31):
        shown.proved = (second - 20) * 500 * MB
        meters.look(shown, float(second))
    assert meters.rate(shown) == 500 * MB
    assert meters.eta(shown) == 10.0
    assert figures.format_state(shown) == "proving 50%"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 10, "0%"), (9_999, 10_000, "99%"), (10, 10, "100%"), (11, 10, "100%"), (0, 0, "100%")],
)
def test_percent_says_100_only_when_all_is_done(part: int, whole: int, text: str) -> None:
    assert figures.percent(part, whole) == text


@pytest.mark.parametrize(
    ("sent", "payload", "text"),
    [(0, 0, "-"), (300, 100, "3.0x"), (100, 100, "1.0x"), (100_000, 1, "100000x")],
)
def test_ratio_is_of_chunks_to_payload(sent: int, payload: int, text: str) -> None:
    assert figures.format_ratio(figures.compression_ratio(sent, payload)) == text


# bars


def drawn(
    bars_console: Console, progress: TransferProgress, seconds: int = 10, speed: int = 0
) -> list[str]:
    """The last picture after ``seconds`` in which the first disk moved at ``speed``."""
    bars = LiveBars(bars_console)
    for second in range(seconds + 1):
        picture = bars.draw(progress, float(second))
        if second < seconds and progress.disks:
            progress.disks[0].acked += speed
            progress.disks[0].wire += speed // 4
    with bars_console.capture() as capture:
        bars_console.print(picture)
    return capture.get().splitlines()


def console(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, no_color=True)


def test_bars_tell_percent_rate_ratio_skipped_time_left_and_state() -> None:
    progress = transfer(
        disk(skipped_hole=2 * GB, skipped_zero=GB, sent=3 * GB, payload=Counter(zstd=GB))
    )
    lines = drawn(console(), progress, speed=100 * MB)
    assert lines[0].split() == ["disk", "done", "rate", "ratio", "skipped", "left", "state"]
    name, _bar, *cells = lines[1].split(maxsplit=2)
    assert name == "root"
    assert cells[0].split() == [
        "40%", "100.0", "MB/s", "3.0x", "2.8", "GiB", "1m", "00s", "sending",
    ]  # fmt: skip
    assert lines[2] == "total: 40% of 9.3 GiB, 25.0 MB/s on the wire, 1m 00s left"


def test_a_failed_disk_shows_its_reason_and_the_others_go_on() -> None:
    progress = transfer(
        disk("root"), disk("db", TransferState.FAILED, error="datastore nfs1 is full")
    )
    lines = drawn(console(), progress, speed=MB)
    assert lines[2].split()[0] == "db"
    assert lines[2].split()[-1] == "failed"
    assert "db: datastore nfs1 is full" in lines


def test_a_stall_is_shown_and_no_time_left_with_it() -> None:
    progress = transfer(disk())
    bars = LiveBars(console())
    for second in range(10):
        progress.disks[0].acked += 100 * MB
        bars.draw(progress, float(second))
    progress.stall = Stall(9.0, WaitsFor.LINK)
    screen = console()
    screen.print(bars.draw(progress, 40.0))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "no progress for 31s: nothing comes from the receiver; is the link up" in text
    assert "left" not in text.split("total:")[1]
    assert text.splitlines()[1].split()[-2:] == ["-", "sending"]


def test_bars_say_that_the_receiver_is_waited_for_and_the_reason_hides_no_time() -> None:
    progress = transfer(disk(state=TransferState.WAITING))
    progress.waiting = Waiting("e" * 300, "nobody", 22.0, 86400.0)
    lines = drawn(console(), progress)
    assert lines[-2] == "waiting for receiver esx1: next try in 12s, giving up in 23h 59m"
    assert lines[-1].startswith("connection lost (eee")


def test_bars_of_many_disks_leave_room_to_say_that_the_receiver_is_waited_for() -> None:
    progress = transfer(*[disk(f"d{number}") for number in range(50)])
    progress.waiting = Waiting("gone", None, 22.0, 86400.0)
    assert len(drawn(console(height=12), progress)) < 12


def test_what_the_receiver_knew_is_told() -> None:
    said = "known to the receiver: 3.0 MiB, not sent"
    progress = transfer(disk(known=3 << 20))
    assert said in "\n".join(drawn(console(200), progress))
    progress.disks[0].known = 0
    assert "known to" not in "\n".join(drawn(console(200), progress))


@pytest.mark.parametrize("width", [20, 40, 55, 60, 70, 79, 80, 120, 200])
def test_pictures_fit_the_terminal_at_any_width(width: int) -> None:
    progress = transfer(
        disk("n" * 100, acked=GB, sent=GB, payload=Counter(zstd=GB // 120)),
        disk("p", TransferState.PROVING, proved=1, to_prove=2),
        disk("f", TransferState.FAILED, error="e" * 300),
        disk("u", TransferState.UNPUBLISHED),
    )
    lines = drawn(console(width), progress, speed=123 * MB)
    assert max(len(line) for line in lines) <= width


def test_80_columns_hold_everything_and_narrower_ones_keep_the_essentials() -> None:
    assert len(fitting(80)) == 8
    essential = {column.title for column in fitting(40)}
    assert essential == {"disk", "done", "left", "state"}


def test_many_disks_leave_room_for_those_at_work_and_count_the_rest() -> None:
    done = [disk(f"done{number}", TransferState.PUBLISHED) for number in range(50)]
    waiting = [disk(f"wait{number}", TransferState.WAITING) for number in range(50)]
    progress = transfer(*done, disk("busy"), *waiting, disk("bad", TransferState.FAILED, error="x"))
    lines = drawn(console(height=12), progress, speed=0)
    assert len(lines) < 12
    names = [line.split()[0] for line in lines]
    assert "busy" in names
    assert "bad" in names
    assert any(line.startswith("and 96 more: 46 published, 50 waiting") for line in lines)


def test_visible_keeps_the_order_and_shows_at_least_one() -> None:
    disks = [disk("a", TransferState.PUBLISHED), disk("b"), disk("c")]
    assert visible(disks, 2) == [1, 2]
    assert visible(disks, 3) == [0, 1, 2]
    assert visible([disk("f", TransferState.FAILED, error="x")], 1) == [0]


def test_hostile_names_bring_no_control_characters_to_the_terminal() -> None:
    progress = transfer(disk(HOSTILE, TransferState.FAILED, error=HOSTILE))
    for line in drawn(console(200), progress):
        assert line.isprintable()
        assert "[red]" in line or "db" not in line


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    bars = LiveBars(Console(file=stream, width=80, force_terminal=True))
    bars.show(transfer(disk("db", TransferState.FAILED, error="x")), 0.0)
    bars.close()
    assert "\x1b[1;31m" not in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()


def test_live_bars_give_the_cursor_back_and_leave_standard_streams_alone() -> None:
    before = (sys.stdout, sys.stderr)
    stream = Terminal()
    bars = LiveBars(Console(file=stream, width=80, force_terminal=True))
    bars.show(transfer(disk()), 0.0)
    assert sys.stdout is before[0]
    bars.close()
    bars.close()
    assert (sys.stdout, sys.stderr) == before
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_disks_may_be_added_while_bars_are_shown() -> None:
    progress = transfer()
    bars = LiveBars(console())
    bars.draw(progress, 0.0)
    progress.disks.append(disk())
    bars.draw(progress, 1.0)


# log lines


def log_lines(stream: io.StringIO) -> list[str]:
    """What was logged since the last call, without the times."""
    lines = [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]
    stream.seek(0)
    stream.truncate()
    return lines


def test_a_line_at_each_change_of_state_and_every_30_seconds_between() -> None:
    stream, progress = io.StringIO(), transfer(disk(state=TransferState.WAITING))
    log = LogLines(stream, wall=lambda: 0.0)
    log.show(progress, 0.0)
    assert log_lines(stream) == []
    progress.disks[0].state = TransferState.OPENING
    log.show(progress, 1.0)
    assert log_lines(stream) == ["root: opening"]
    progress.disks[0].state = TransferState.SENDING
    for second in range(2, 2 + 2 * int(LOG_LINE_INTERVAL) + 1):
        progress.disks[0].acked += 50 * MB
        log.show(progress, float(second))
    assert log_lines(stream) == [
        "root: sending 0% of 9.3 GiB, ratio -, 0 B skipped",
        "root: sending 15% of 9.3 GiB, 50.0 MB/s, ratio -, 0 B skipped, 2m 49s left",
        "root: sending 30% of 9.3 GiB, 50.0 MB/s, ratio -, 0 B skipped, 2m 19s left",
    ]


def test_several_disks_are_summed_up_every_30_seconds_with_the_time_that_is_left() -> None:
    stream = io.StringIO()
    log = LogLines(stream)
    first, second = disk(skipped_zero=4 * GB), disk("data")
    for second_ in range(100):
        first.skipped_zero = 4 * GB  # found zero in an instant, long ago
        first.acked = second_ * 20 * MB
        second.acked = second_ * 20 * MB
        log.show(transfer(first, second), float(second_))
    totals = [line for line in stream.getvalue().splitlines() if "web01: total: " in line]
    assert len(totals) == 3
    left = 20 * GB - 4 * GB - 90 * 40 * MB
    assert totals[-1].endswith(f"{format_duration(left / (40 * MB))} left")


def test_a_single_disk_is_not_summed_up() -> None:
    stream = io.StringIO()
    log = LogLines(stream)
    for second in range(100):
        log.show(transfer(disk(acked=second * 20 * MB)), float(second))
    assert "total" not in stream.getvalue()


def report(number: int) -> PassReport:
    figures_ = PassFigures(
        began=100.0 * number,
        seconds=60.0,
        opening=1.0,
        carrying=50.0,
        proving=9.0,
        reading=10.0,
        sending=45.0,
        read=10 * GB,
        changed=0,
        fresh=GB,
        wire=GB,
    )
    return Convergence(None).add(figures_)


def test_each_pass_is_logged_once_when_it_has_ended() -> None:
    stream = io.StringIO()
    log, progress = LogLines(stream), transfer(disk())
    for number in range(2):
        log.show(progress, 2.0 * number)
        progress.passes.append(report(number + 1))
        log.show(progress, 2.0 * number + 1)
    assert stream.getvalue().count("web01: pass 1 took 1m 00s, 953.7 MiB on the wire") == 2


def test_passes_stay_above_the_bars() -> None:
    terminal = Terminal()
    bars = LiveBars(Console(file=terminal, width=200, height=24, force_terminal=True))
    progress = transfer(disk())
    bars.show(progress, 0.0)
    progress.passes.append(report(1))
    bars.show(progress, 1.0)
    bars.show(progress, 2.0)
    bars.close()
    assert terminal.getvalue().count("pass 1 took 1m 00s") == 1


def test_the_end_of_a_disk_is_logged_once_with_its_reason() -> None:
    stream = io.StringIO()
    progress = transfer(
        disk("a", TransferState.PUBLISHED, wire=GB, started=1.0, finished=601.0),
        disk("b", TransferState.FAILED, error="datastore nfs1 is full"),
    )
    log = LogLines(stream)
    log.show(progress, 1000.0)
    log.show(progress, 5000.0)
    assert log_lines(stream) == [
        "a: published, 953.7 MiB on the wire in 10m 00s",
        "b: failed: datastore nfs1 is full",
    ]


def test_a_stall_is_logged_when_noticed_every_30_seconds_and_when_it_ends() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    progress.stall = Stall(10.0, WaitsFor.STORAGE)
    for second in range(20, 60):
        log.show(progress, float(second))
    progress.stall = None
    log.show(progress, 60.0)
    log.show(progress, 61.0)
    assert log_lines(stream) == [
        "esx1: no progress for 10s: the receiver answers, its storage does not get on",
        "esx1: no progress for 40s: the receiver answers, its storage does not get on",
        "esx1: moving again after 50s",
    ]


def test_what_a_stall_waits_for_is_logged_as_soon_as_it_can_be_told() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    for second, cause in ((20, WaitsFor.RECEIVER), (21, WaitsFor.RECEIVER), (25, WaitsFor.LINK)):
        progress.stall = Stall(10.0, cause)
        log.show(progress, float(second))
    assert log_lines(stream) == [
        "esx1: no progress for 10s: no word from the receiver",
        "esx1: no progress for 15s: nothing comes from the receiver; is the link up, and its host?",
    ]


def test_a_stall_that_ends_with_its_session_is_not_logged_as_movement() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    progress.stall = Stall(10.0, WaitsFor.LINK)
    log.show(progress, 25.0)
    progress.begin_again(Waiting("the link failed", None, 1.0, 60.0))
    log.show(progress, 26.0)
    assert "moving again" not in "".join(log_lines(stream))


def test_a_stall_stays_on_record_above_the_bars() -> None:
    stream, progress = Terminal(), transfer(disk())
    bars = LiveBars(Console(file=stream, width=100, force_terminal=True, color_system=None))
    bars.show(progress, 9.0)
    for second in range(20, 100):
        progress.stall = Stall(10.0, WaitsFor.STORAGE)
        bars.show(progress, float(second))
    progress.stall = None
    bars.show(progress, 100.0)
    bars.close()
    text = stream.getvalue()
    told = re.findall(r"\d\d:\d\d:\d\d esx1: (no progress for 10s|moving again after 1m 30s)", text)
    assert told == ["no progress for 10s", "moving again after 1m 30s"]


def test_a_source_that_changed_since_the_interrupted_run_is_told() -> None:
    said = "changed since the interrupted run: 3.0 MiB, sent again"
    progress = transfer(disk(changed=3 << 20))
    stream = io.StringIO()
    LogLines(stream).show(progress, 1.0)
    assert said in log_lines(stream)[0]
    assert said in "\n".join(drawn(console(200), progress))
    progress.disks[0].changed = 0
    assert "changed" not in "\n".join(drawn(console(200), progress))


def test_waiting_is_logged_with_its_reason_and_times_every_30_seconds_and_when_it_ends() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    for second in range(45):
        next_try = 12.0 if second < 12 else 50.0
        progress.waiting = Waiting("the link failed", None, next_try, 86400.0)
        log.show(progress, float(second))
    progress.waiting, progress.reconnections = None, 1
    log.show(progress, 45.0)
    log.show(progress, 46.0)
    assert log_lines(stream) == [
        "waiting for receiver esx1: connection lost (the link failed);"
        " next try in 12s, giving up in 1d 00h",
        "waiting for receiver esx1: connection lost (the link failed);"
        " next try in 20s, giving up in 23h 59m",
        "esx1: connected again",
    ]


def test_a_new_reason_to_wait_is_logged_at_once() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    progress.waiting = Waiting("the link failed", None, 1.0, 60.0)
    log.show(progress, 0.0)
    progress.waiting = Waiting("the link failed", "nobody listens", 1.0, 60.0)
    log.show(progress, 2.0)
    assert log_lines(stream)[1] == (
        "waiting for receiver esx1: connection lost (the link failed); last try: nobody listens;"
        " trying now, giving up in 58s"
    )


def test_the_end_of_waiting_in_vain_is_not_logged_as_a_connection() -> None:
    stream, progress = io.StringIO(), transfer()
    log = LogLines(stream)
    progress.waiting = Waiting("the link failed", None, 1.0, 60.0)
    log.show(progress, 0.0)
    progress.waiting = None
    log.show(progress, 1.0)
    assert len(log_lines(stream)) == 1


def test_log_lines_neutralise_hostile_names() -> None:
    stream = io.StringIO()
    LogLines(stream).show(transfer(disk(HOSTILE, TransferState.FAILED, error=HOSTILE)), 0.0)
    [line] = stream.getvalue().splitlines()
    assert line.isprintable()


def test_log_lines_begin_with_the_time() -> None:
    stream = io.StringIO()
    LogLines(stream, wall=lambda: 1_700_000_000.0).show(transfer(disk()), 0.0)
    assert stream.getvalue().startswith("2023-11-1")


# choosing and following


def test_bars_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_display(Terminal()), LiveBars)
    assert isinstance(choose_display(io.StringIO()), LogLines)
    assert isinstance(choose_display(Terminal(), json=True), LogLines)
    assert isinstance(choose_display(Terminal(), quiet=True), Silent)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(Terminal()), LogLines)


class Recorder(Silent):
    def __init__(self, fails_at: int | None = None) -> None:
        self.interval = 0.0
        self.shown: list[TransferState] = []
        self.closed = 0
        self._fails_at = fails_at

    def show(self, progress: TransferProgress, now: float) -> None:
        if len(self.shown) == self._fails_at:
            raise BrokenPipeError
        self.shown.append(progress.disks[0].state)

    def close(self) -> None:
        self.closed += 1


def test_following_shows_the_end_even_if_no_poll_was_due() -> None:
    async def run() -> Recorder:
        display, progress = Recorder(), transfer(disk())
        async with following(display, progress):
            await asyncio.sleep(0)
            display.interval = 3600.0
            await asyncio.sleep(0)
            progress.disks[0].state = TransferState.PUBLISHED
        return display

    display = asyncio.run(run())
    assert display.shown[0] is TransferState.SENDING
    assert display.shown[-1] is TransferState.PUBLISHED
    assert display.closed == 1


def test_following_closes_the_display_when_the_transfer_fails() -> None:
    display = Recorder()

    async def run() -> None:
        async with following(display, transfer(disk())):
            raise ConnectionResetError("the transfer's own")

    with pytest.raises(ConnectionResetError, match="the transfer's own"):
        asyncio.run(run())
    assert display.closed == 1


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_terminal_that_goes_away_does_not_end_the_transfer(fails_at: int) -> None:
    async def run() -> str:
        async with following(Recorder(fails_at), transfer(disk())):
            for _ in range(5):
                await asyncio.sleep(0)
        return "all sent"

    assert asyncio.run(run()) == "all sent"


def test_a_broken_pipe_under_log_lines_does_not_end_the_transfer() -> None:
    async def run() -> str:
        async with following(LogLines(HungUp()), transfer(disk())):
            await asyncio.sleep(0)
        return "all sent"

    assert asyncio.run(run()) == "all sent"


def test_a_defect_of_a_display_is_not_hidden() -> None:
    class Defect(Recorder):
        def show(self, progress: TransferProgress, now: float) -> None:
            raise ZeroDivisionError

    async def run() -> None:
        async with following(Defect(), transfer(disk())):
            await asyncio.sleep(0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
