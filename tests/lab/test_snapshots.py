"""Volumes that are in use, sent by way of a snapshot: of one moment, and nothing is left of it."""

import hashlib
import os
import random
from collections.abc import Iterator

import pytest
from processes import wait_until

from lab.guest import Guest
from lab.laboratory import Lab

pytestmark = pytest.mark.skipif(
    "FLATSHIP_LAB" not in os.environ, reason="takes minutes: run by make lab alone"
)

MIB = 1 << 20
SIZE = 16 * MIB
NOTES = "/var/lib/flatship/sender/volume-snapshots"
SNAPSHOT = ("--live", "--snapshot")
SLOW = (*SNAPSHOT, "--limit", "500KB", "--compression", "off")  # what is given up still lasts
KILLS = int(os.environ.get("FLATSHIP_LAB_KILLS", "2"))
SEED = int(os.environ.get("FLATSHIP_LAB_SEED", "1"))
LATEST_KILL = 5.0  # seconds after the note is written; the snapshot may well be gone by then


@pytest.fixture(scope="module")
def pool(lab: Lab) -> Guest:
    lab.guest.run("lvcreate --quiet -y --type thin-pool -L 128m -n pool vg0")
    return lab.guest


@pytest.fixture(autouse=True)
def nothing_is_left(pool: Guest) -> Iterator[None]:
    yield
    assert leftovers(pool) == ""


def volume(guest: Guest, name: str, *, thin: bool, data: int = 10 * MIB) -> str:
    kind = f"-V {SIZE}b --thin" if thin else f"-L {SIZE}b"
    where = "vg0/pool" if thin else "vg0"
    guest.run(f"lvcreate --quiet -y {kind} -n {name} {where}")
    fill(guest, name, data)
    return f"vg0/{name}"


def fill(guest: Guest, name: str, data: int) -> None:
    guest.run(
        f"head -c {data} /dev/urandom | dd of=/dev/vg0/{name} bs=1M iflag=fullblock status=none"
    )
    guest.run(f"sync; blockdev --flushbufs /dev/vg0/{name}")


def snapshots(guest: Guest) -> str:
    """Snapshots of the sender's, whoever they are of."""
    return guest.output("lvs --noheadings -o lv_name vg0 | grep -o 'flatship-.*' || true")


def leftovers(guest: Guest) -> str:
    """What no run may leave: snapshots, notes of them, volumes that are suspended."""
    suspended = "dmsetup info -c --noheadings -o name,suspended | grep -i suspended || true"
    return snapshots(guest) + guest.output(f"ls {NOTES} | grep flatship || true; {suspended}")


def begin(guest: Guest, *words: str) -> str:
    """Start a send in the background, its words going to /tmp/said; returns its pid."""
    command = guest.sender("send", *words, "--to", "esx", "--quiet")
    return guest.output(f"{command} > /tmp/said 2>&1 & echo $!")


def ended(guest: Guest, pid: str) -> str:
    """Wait for the end of what ``begin`` has started; returns what it said."""
    return guest.output(f"tail --pid={pid} -f /dev/null; cat /tmp/said")


def at_receiver(lab: Lab, digest: str) -> bool:
    """Whether some disk there, published or not, has these bytes."""
    for path in lab.receiver.datastore.rglob("*"):
        if path.is_file() and path.stat().st_size == SIZE:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    return True
    return False


def test_volumes_arrive_as_they_were_when_their_snapshots_were_made(lab: Lab, pool: Guest) -> None:
    kinds = ("thin", "thick")
    names = [volume(pool, kind, thin=kind == "thin", data=2 * MIB) for kind in kinds]
    before = [pool.output(f"sha256sum < /dev/{name}").split()[0] for name in names]
    pid = begin(pool, *names, "--vm", "both", *SLOW)
    wait_until(lambda: len(snapshots(pool).split()) == 2, "the snapshots are there", timeout=60)
    for kind in kinds:
        fill(pool, kind, MIB)
    ended(pool, pid)
    assert snapshots(pool) == ""
    assert all(at_receiver(lab, digest) for digest in before)
    for disk in lab.send(*names, vm="both"):
        assert disk["state"] == "published"
        assert disk["bytes"]["held"] == MIB  # of the same disk: what an earlier pass sent counts
    assert lab.arrived(f"/dev/{names[0]}", "both")
    assert lab.arrived(f"/dev/{names[1]}", "both", "both_1")


def test_a_run_that_is_told_to_stop_leaves_no_snapshot(pool: Guest) -> None:
    name = volume(pool, "told", thin=True)
    pid = begin(pool, name, "--vm", "told", *SLOW)
    wait_until(lambda: snapshots(pool), "the snapshot is there", timeout=60)
    pool.run(f"kill {pid}")
    ended(pool, pid)


def test_a_thick_snapshot_that_fills_is_given_up_and_the_guest_goes_on(pool: Guest) -> None:
    name = volume(pool, "filling", thin=False)
    pid = begin(pool, name, "--vm", "filling", *SLOW, "--snapshot-size", "4MiB")
    wait_until(lambda: snapshots(pool), "the snapshot is there", timeout=60)
    fill(pool, "filling", 8 * MIB)
    assert "--snapshot-size" in ended(pool, pid)


def test_a_pool_that_is_almost_full_ends_the_pass_and_begins_none(pool: Guest) -> None:
    pool.run("lvcreate --quiet -y --type thin-pool -L 32m -n small vg0")
    pool.run("lvcreate --quiet -y -V 32m --thin -n crowded vg0/small")
    fill(pool, "crowded", 16 * MIB)
    pid = begin(pool, "vg0/crowded", "--vm", "crowded", *SLOW)
    wait_until(lambda: snapshots(pool), "the snapshot is there", timeout=60)
    pool.run(
        "head -c 14M /dev/urandom |"
        " dd of=/dev/vg0/crowded bs=1M seek=16 iflag=fullblock oflag=direct status=none"
    )
    assert "before the guest is hurt" in ended(pool, pid)
    again = pool.run(
        pool.sender("send", "vg0/crowded", "--to", "esx", "--vm", "crowded", *SNAPSHOT), expect=1
    )
    assert "no snapshot of it is made" in again.stderr


@pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
def test_what_a_run_leaves_that_is_killed_at_any_moment_goes_at_the_next_start(
    pool: Guest, seed: int
) -> None:
    chance = random.Random(seed)
    kind = chance.choice(["thin", "thick"])
    if pool.run(f"lvs vg0/killed-{kind}", expect=None).returncode:
        volume(pool, f"killed-{kind}", thin=kind == "thin", data=MIB)
    words = (f"vg0/killed-{kind}", "--vm", f"killed-{kind}", *SLOW)
    moment = chance.uniform(0, LATEST_KILL)
    pid = begin(pool, *words)
    pool.run(
        f"while kill -0 {pid} && ! ls {NOTES} | grep -q flatship; do sleep 0.02; done 2> /dev/null;"
        f" sleep {moment:.2f}; kill -9 {pid} || true"
    )
    dry = pool.sender("send", f"vg0/killed-{kind}", "--to", "esx", "--vm", "x", "--dry-run")
    pool.run(dry, expect=None)  # 11 while the volume is a snapshot's origin still
    assert leftovers(pool) == "", f"killed after {moment:.2f} s"
