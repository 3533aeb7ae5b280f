import dataclasses
from collections import Counter

import msgspec

from flatship_protocol.errors import ErrorCode
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.results import from_progress
from flatship_sender.snapshot import DiskSnapshot, Snapshot, restore, take
from flatship_sender.stalls import Stall, WaitsFor

THERE, HERE = 5000.0, 70.0  # what the clocks of two processes read at one moment


def disk() -> DiskProgress:
    return DiskProgress(
        source="/dev/vg0/web01",
        target="web01/web01.vmdk",
        size=1 << 30,
        state=TransferState.PROVING,
        read=11,
        skipped_hole=12,
        skipped_zero=13,
        sent=14,
        acked=15,
        held=16,
        changed=17,
        kept=18,
        known=19,
        wanted=20,
        resent=21,
        acked_before=22,
        payload=Counter(zstd=23, raw=24),
        wire=25,
        proved=26,
        to_prove=27,
        level=3,
        history=True,
        started=THERE - 60,
        sending=THERE - 50,
        proving=THERE - 4,
        last_progress=THERE - 0.5,
        stage_seconds={"read": 1.5},
        root=bytes(range(32)),
        error="no room",
        error_code=ErrorCode.DATASTORE_FULL,
        exit_code=5,
        capacity=1 << 30,
    )


def progress() -> TransferProgress:
    return TransferProgress(
        "store1",
        "web01",
        [disk()],
        connections=4,
        session_wire=1000,
        limit=2.5e6,
        link_seconds=12.5,
        stall=Stall(THERE - 30, WaitsFor.STORAGE),
        reconnections=2,
        waiting=Waiting("lost", None, THERE + 5, THERE + 3600),
        earlier_overhead=7,
    )


def carried(snapshot: Snapshot) -> Snapshot:
    return msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot)


def test_a_snapshot_restored_in_another_process_tells_the_same_story() -> None:
    restored = restore(carried(take(progress(), THERE)), HERE)
    assert from_progress(restored) == from_progress(progress())
    assert restored.wire == progress().wire
    assert restored.waiting == Waiting("lost", None, HERE + 5, HERE + 3600)
    assert restored.stall == Stall(HERE - 30, WaitsFor.STORAGE)


def test_a_snapshot_has_every_counter_of_a_disk_and_clock_readings_as_ages() -> None:
    restored = restore(carried(take(progress(), THERE)), HERE).disks[0]
    moved = {"started": 60, "sending": 50, "proving": 4, "last_progress": 0.5}
    for field in dataclasses.fields(DiskProgress):
        if field.name in moved:
            assert getattr(restored, field.name) == HERE - moved[field.name], field.name
        else:
            assert getattr(restored, field.name) == getattr(disk(), field.name), field.name
    assert set(DiskSnapshot.__struct_fields__) == {
        field.name for field in dataclasses.fields(DiskProgress)
    }


def test_what_has_not_happened_has_not_happened_after_it_was_restored() -> None:
    fresh = TransferProgress("r", "vm", [DiskProgress("/s", "t", 512)])
    assert restore(carried(take(fresh, THERE)), HERE) == fresh


def test_a_path_that_is_no_text_does_not_keep_a_snapshot_from_being_sent() -> None:
    foreign = TransferProgress("r", "vm", [DiskProgress("/disks/\udcff", "t", 512)])
    assert carried(take(foreign, THERE)).disks[0].source == r"/disks/\udcff"


def test_what_is_restored_can_be_counted_on_and_leaves_the_snapshot_as_it_is() -> None:
    snapshot = take(progress(), THERE)
    restored = restore(snapshot, HERE)
    restored.disks[0].payload["zstd"] += 1
    restored.disks[0].stage_seconds["read"] += 1
    restored.passes.clear()
    assert take(restore(snapshot, THERE), THERE, snapshot.taken) == snapshot
