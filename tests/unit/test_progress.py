from collections import Counter

from flatship_protocol.errors import ErrorCode
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.stalls import Stall, WaitsFor


def lost_disk() -> DiskProgress:
    return DiskProgress(
        "/dev/x",
        "web/web.vmdk",
        1000,
        TransferState.FAILED,
        read=800,
        skipped_hole=100,
        skipped_zero=50,
        sent=600,
        acked=400,
        held=20,
        payload=Counter(zstd=300),
        wire=350,
        proved=5,
        to_prove=10,
        started=10.0,
        finished=20.0,
        last_progress=19.0,
        root=bytes(32),
        error="gone",
        error_code=ErrorCode.INTERNAL,
        exit_code=5,
        capacity=1024,
    )


def test_a_disk_that_begins_again_is_as_one_that_never_failed() -> None:
    disk = lost_disk()
    disk.begin_again()
    assert disk.state is TransferState.WAITING
    assert (disk.error, disk.error_code, disk.exit_code) == (None, None, 0)
    assert (disk.root, disk.finished, disk.proved, disk.to_prove) == (None, 0.0, 0, 0)
    assert disk.remaining == disk.size


def test_a_disk_that_begins_again_keeps_what_the_whole_command_has_spent() -> None:
    disk = lost_disk()
    disk.begin_again()
    assert (disk.read, disk.sent, disk.wire, disk.payload) == (800, 600, 350, Counter(zstd=300))
    assert (disk.started, disk.last_progress, disk.capacity) == (10.0, 19.0, 1024)


def test_what_was_sent_and_not_acknowledged_is_told_apart_over_any_number_of_sessions() -> None:
    disk = lost_disk()
    disk.begin_again()
    assert disk.resent == 200
    disk.sent += 300
    disk.acked = 250
    disk.held = 400
    assert disk.remaining == 350
    disk.begin_again()
    assert disk.resent == 250
    disk.begin_again()  # nothing was sent in between
    assert disk.resent == 250


def test_the_wire_of_lost_sessions_is_counted_once() -> None:
    disk = lost_disk()
    progress = TransferProgress("esx", "web", [disk], session_wire=370)
    progress.stall = Stall(3.0, WaitsFor.LINK)
    waiting = Waiting("gone", None, 21.0, 99.0)
    progress.begin_again(waiting)
    assert progress.wire == 370
    assert (progress.waiting, progress.stall) == (waiting, None)
    disk.wire += 100
    assert progress.wire == 470
    progress.session_wire = disk.wire + 30  # as the next session adds it up
    assert progress.wire == 500
    progress.begin_again(waiting)
    progress.begin_again(waiting)
    assert progress.wire == 500
