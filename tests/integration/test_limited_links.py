"""Limits between real processes, measured at the interface that the bytes leave by."""

import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP

import pytest
from arrangements import working_pair
from dark_link import DarkLink, dark_link, needs_namespaces, set_plain_packets
from disks import make_data_disk
from processes import RECEIVER, Pair, Receiver, Sender, wait_until
from wire_watch import WireWatch, burst, rates

MIB = 1 << 20
MEGABYTE = 1_000_000
WINDOW = 10.0  # seconds
LIMIT = '[limits]\nrate = "{}"\n'


@pytest.fixture(scope="module")
def link() -> Iterator[DarkLink]:
    with dark_link() as link:
        set_plain_packets(link)
        yield link


@pytest.fixture
def far(link: DarkLink, tmp_path: Path) -> Iterator[Pair]:
    """A receiver at the other end of the link."""
    receiver = Receiver(tmp_path / "far", program=(*link.within, *RECEIVER), host=link.far)
    sender = Sender(tmp_path / "near")
    with working_pair(receiver, sender) as pair:
        yield pair


@needs_namespaces
def test_the_wire_carries_the_limit_within_2_percent_over_10_seconds_and_in_no_bursts(
    link: DarkLink, far: Pair, tmp_path: Path
) -> None:
    """Two rates, of which the second is set in the configuration while the first holds."""
    config = tmp_path / "sender.toml"
    config.write_text(LIMIT.format("1MB"))
    source = make_data_disk(tmp_path / "disk.raw", 192 * MIB)
    with WireWatch(link.interface) as watch:
        sending = far.start_send(source, vm="web01", options=("--config", config))
        wait_until(lambda: "sending" in sending.stderr, "it sends")
        for rate in (1, 8):
            config.write_text(LIMIT.format(f"{rate}MB"))
            sending.signal(SIGHUP)
            told = f"configuration read again: {rate}.0 MB/s"
            wait_until(lambda told=told: told in sending.stderr, "it is told")  # type: ignore[misc]
            since = time.monotonic()
            time.sleep(WINDOW + 1)
            looks = watch.since(since)
            over = [each / MEGABYTE / rate for each in rates(looks, WINDOW)]
            print(rate, over, burst(looks, rate * MEGABYTE))
            assert over
            assert all(0.98 <= each <= 1.02 for each in over)
            assert burst(looks, rate * MEGABYTE) <= 0.1
        sending.kill()


@needs_namespaces
def test_two_runs_share_the_limit_of_the_site_and_one_that_is_killed_leaves_its_part(
    link: DarkLink, far: Pair, tmp_path: Path
) -> None:
    config = tmp_path / "sender.toml"
    config.write_text(LIMIT.format("2MB"))
    first, second = (make_data_disk(tmp_path / f"{each}.raw", 64 * MIB) for each in (1, 2))
    with WireWatch(link.interface) as watch:
        one = far.start_send(first, vm="web01", options=("--config", config))
        two = far.start_send(second, vm="web02", options=("--config", config, "--limit", "500kB"))
        wait_until(lambda: "sending" in one.stderr and "sending" in two.stderr, "both send")
        time.sleep(6)  # each has its part after three looks, a second apart
        since = time.monotonic()
        time.sleep(3)
        (both,) = rates(watch.since(since), 2.5)[:1]
        assert both / (2 * MEGABYTE) == pytest.approx(1, abs=0.05)
        one.kill()
        time.sleep(2)
        since = time.monotonic()
        time.sleep(2)
        (alone,) = rates(watch.since(since), 1.5)[:1]
        assert alone / (MEGABYTE / 2) == pytest.approx(1, abs=0.05)
        two.kill()


@needs_namespaces
def test_a_disk_of_its_own_limit_keeps_to_it(link: DarkLink, far: Pair, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 32 * MIB)
    with WireWatch(link.interface) as watch:
        sending = far.start_send(source, vm="web01", options=("--disk-limit", "2MB"))
        wait_until(lambda: "sending" in sending.stderr, "it sends")
        since = time.monotonic()
        time.sleep(5)
        (rate,) = rates(watch.since(since), 4.5)[:1]
        assert rate / (2 * MEGABYTE) == pytest.approx(1, abs=0.03)
        sending.kill()


@needs_namespaces
def test_measuring_a_link_keeps_to_the_limit(link: DarkLink, far: Pair, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 4 * MIB)
    asked = ("plan", source, "--to", "esx", "--vm", "web01", "--limit", "1MB", "--json")
    with WireWatch(link.interface) as watch:
        planned = far.sender.run(*asked).expect(0).json
        highest = max(rates(watch.looks, 3.0)) / MEGABYTE
    assert highest == pytest.approx(1, abs=0.05)
    assert planned["link"]["rate"] / MEGABYTE == pytest.approx(1, abs=0.1)


def test_a_configuration_that_cannot_be_used_is_refused_and_later_changes_nothing(
    pair: Pair, tmp_path: Path
) -> None:
    config = tmp_path / "sender.toml"
    source = make_data_disk(tmp_path / "disk.raw", 16 * MIB)
    config.write_text(LIMIT.format("fast"))
    run = pair.send(source, vm="web01", options=("--config", config)).expect(2)
    assert run.error.startswith(f"{config}:2: limits.rate: expected a rate such as 20MB")
    config.write_text(LIMIT.format("4MB"))
    sending = pair.start_send(source, vm="web01", options=("--config", config))
    wait_until(lambda: "esx: limit 4.0 MB/s" in sending.stderr, "the limit is shown")
    config.write_text("[limits")
    sending.signal(SIGHUP)
    wait_until(lambda: "the limits stay as they were" in sending.stderr, "it is told")
    sending.wait().expect(0)
    assert list((pair.sender.state / "limits").iterdir()) == []
