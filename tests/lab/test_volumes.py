"""Real logical volumes on a real device-mapper, sent from inside a guest."""

import pytest
from processes import wait_until

from lab.guest import Guest
from lab.laboratory import Lab

MIB = 1 << 20
SIZE = 96 * MIB
# Three stretches of 5 MiB, and a lone page.
WRITE_SOME = (
    "for at in 0 41 82; do"
    " dd if=/dev/urandom of={volume} bs=1M seek=$at count=5 conv=notrunc status=none; done;"
    " dd if=/dev/urandom of={volume} bs=4k seek=24000 count=1 conv=notrunc status=none"
)
SLOW_DUMP = "/usr/local/sbin/thin_dump"  # found before the real one


@pytest.fixture(scope="module")
def pool(lab: Lab) -> Guest:
    lab.guest.run("lvcreate --quiet -y --type thin-pool -L 1g -n pool vg0")
    return lab.guest


def thin(guest: Guest, name: str) -> str:
    guest.run(f"lvcreate --quiet -y -V {SIZE}b --thin -n {name} vg0/pool")
    guest.run(WRITE_SOME.format(volume=f"/dev/vg0/{name}"))
    return f"/dev/vg0/{name}"


def is_reserved(guest: Guest) -> bool:
    return guest.output("dmsetup status vg0-pool-tpool").split()[6] != "-"


def test_a_thick_volume_arrives_byte_for_byte_by_its_short_name(lab: Lab) -> None:
    lab.guest.run("lvcreate --quiet -y -n thick -L 64m vg0")
    lab.guest.run("head -c 20000000 /dev/urandom > /dev/vg0/thick")
    (disk,) = lab.send("vg0/thick", vm="thick")
    assert disk["state"] == "published"
    assert lab.arrived("/dev/vg0/thick", "thick")


def test_of_a_thin_volume_only_what_is_mapped_is_read(lab: Lab, pool: Guest) -> None:
    volume = thin(pool, "web")
    mapped = float(pool.output("lvs --noheadings -o data_percent vg0/web")) / 100 * SIZE
    (disk,) = lab.send("vg0/web", vm="web")
    assert disk["state"] == "published"
    assert mapped < 16 * MIB
    assert disk["bytes"]["read"] <= mapped + MIB  # the lone page's chunk is read in full
    assert lab.arrived(volume, "web")
    assert not is_reserved(pool)


def test_metadata_that_somebody_else_has_reserved_is_left_alone(lab: Lab, pool: Guest) -> None:
    volume = thin(pool, "held")
    pool.run("dmsetup message vg0-pool-tpool 0 reserve_metadata_snap")
    try:
        done = pool.run(pool.sender("send", "vg0/held", "--to", "esx", "--vm", "held"))
        assert "somebody else" in done.stderr
        assert is_reserved(pool)
    finally:
        pool.run("dmsetup message vg0-pool-tpool 0 release_metadata_snap")
    assert lab.arrived(volume, "held")


def test_metadata_reserved_by_a_run_that_was_killed_is_released_by_the_next(
    lab: Lab, pool: Guest
) -> None:
    volume = thin(pool, "killed")
    command = pool.sender("send", "vg0/killed", "--to", "esx", "--vm", "killed")
    pool.run(f"printf '#!/bin/sh\\nexec sleep 300\\n' > {SLOW_DUMP}; chmod +x {SLOW_DUMP}")
    try:
        pid = pool.output(f"{command} > /dev/null 2>&1 & echo $!")
        wait_until(lambda: is_reserved(pool), "the metadata is reserved", timeout=60)
        pool.run(f"kill -9 {pid}")
        wait_until(lambda: pool.run("pgrep sleep", expect=None).returncode, "its tool has ended")
    finally:
        pool.run(f"rm {SLOW_DUMP}")
    assert is_reserved(pool)
    pool.run(command)
    assert not is_reserved(pool)
    assert lab.arrived(volume, "killed")
