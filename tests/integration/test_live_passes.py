"""Live passes until the downtime fits, while another process writes to the source."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from disks import MIB, make_data_disk, same_content
from processes import Pair, wait_until

# Writes pages of its own at a steady rate, in turn over all of the file, until it is ended.
GUEST = """
import os, sys, time
path, size, pages, pause = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4])
disk = os.open(path, os.O_RDWR)
at = 0
while True:
    for _ in range(pages):
        os.pwrite(disk, os.urandom(4096), at)
        at = (at + 37 * 4096) % size
    time.sleep(pause)
"""


@contextmanager
def guest(source: Path, *, pages: int, pause: float) -> Iterator[None]:
    """A process that writes ``pages`` pages to ``source`` every ``pause`` seconds."""
    size = source.stat().st_size
    command = (sys.executable, "-c", GUEST, source, str(size), str(pages), str(pause))
    writing = subprocess.Popen(("setpriv", "--pdeathsig", "KILL", *command))
    try:
        yield
    finally:
        writing.kill()
        writing.wait()


def until(downtime: str, limit: str = "20MB") -> tuple[str, ...]:
    return ("--live", "--until-downtime", downtime, "--limit", limit)


def test_passes_are_made_until_the_downtime_fits(pair: Pair, vm: str, tmp_path: Path) -> None:
    size = 32 * MIB
    source = make_data_disk(tmp_path / "disk.raw", size)
    with guest(source, pages=4, pause=0.05):
        live = pair.send(source, vm=vm, options=until("20s")).expect(0)
    passes = live.json["passes"]
    assert len(passes) >= 2
    assert passes[-1]["verdict"] == "fits"
    assert passes[-1]["projection"]["downtime"]["high"] <= 20
    assert passes[0]["figures"]["wire"] >= size
    assert 0 < passes[1]["figures"]["changed"] < size / 2
    assert passes[1]["change_rate"] > 0
    assert f"{vm}: pass {len(passes)} took" in live.stderr
    assert "projected downtime" in live.stderr
    assert (live.disk["state"], live.json["downtime"]) == ("unpublished", None)
    assert not pair.receiver.descriptor(vm).exists()

    final = pair.send(source, vm=vm).expect(0)
    assert same_content(source, pair.receiver.flat(vm), size)
    took = final.json["downtime"]
    assert took["projected"]["low"] <= took["projected"]["expected"]
    assert final.json["passes"] == []
    lines = (pair.sender.state / "passes" / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["downtime"] == took
    assert json.loads(lines[-1])["vm"] == vm


def test_a_guest_that_writes_faster_than_the_link_is_said_not_to_converge(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 16 * MIB)
    with guest(source, pages=400, pause=0.02):
        live = pair.send(source, vm=vm, options=until("1500ms", "6MB")).expect(3)
    assert live.json["passes"][-1]["verdict"] == "does not converge"
    assert "does not get down to 1.5s" in live.error
    assert re.search("changes as fast as the link|carrying what changes takes most", live.error)
    assert not pair.receiver.descriptor(vm).exists()
    pair.send(source, vm=vm).expect(0)
    assert same_content(source, pair.receiver.flat(vm), 16 * MIB)


def test_a_downtime_that_no_pass_can_have_is_said_to_be_out_of_reach(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 8 * MIB)
    live = pair.send(source, vm=vm, options=("--live", "--until-downtime", "1ms")).expect(3)
    assert len(live.json["passes"]) == 2
    assert "takes most of it: faster storage" in live.error


def test_an_interrupted_command_ends_at_once_and_the_next_one_knows_its_passes(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 16 * MIB)
    with guest(source, pages=400, pause=0.02):
        sending = pair.start_send(source, vm=vm, options=until("1ms", "16MB"))
        wait_until(lambda: ": pass 1 took" in sending.stderr, "a pass has ended")
        sending.signal(signal.SIGTERM)
        stopped = sending.wait().expect(130)
    assert stopped.disk["state"] == "cancelled"
    live = pair.send(source, vm=vm, options=("--live",)).expect(0)
    (report,) = live.json["passes"]
    assert report["projection"] is not None
    pair.send(source, vm=vm).expect(0)
    assert same_content(source, pair.receiver.flat(vm), 16 * MIB)


def test_a_record_of_passes_that_is_damaged_ends_nothing(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 2 * MIB)
    pair.send(source, vm=vm, options=("--live",)).expect(0)
    (record,) = (pair.sender.state / "passes").glob(f"*{vm}.json")
    record.write_text("{")
    final = pair.send(source, vm=vm).expect(0)
    assert "is not readable" in final.stderr
    assert final.disk["published"]


def test_a_disk_that_fails_ends_the_passes_of_no_other(pair: Pair, vm: str, tmp_path: Path) -> None:
    """The second disk is published there already."""
    first = make_data_disk(tmp_path / "first.raw", 2 * MIB, seed=1)
    second = make_data_disk(tmp_path / "second.raw", 2 * MIB, seed=2)
    pair.send(first, second, vm=vm).expect(0)
    pair.receiver.descriptor(vm).unlink()
    pair.receiver.flat(vm).unlink()
    live = pair.send(first, second, vm=vm, options=("--live", "--until-downtime", "30s"))
    live.expect(11)
    assert [disk["state"] for disk in live.disks] == ["unpublished", "failed"]
    assert live.json["passes"][-1]["verdict"] == "fits"
