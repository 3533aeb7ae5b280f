import json
from collections import Counter

from flatship_protocol.errors import ErrorCode
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.results import SCHEMA_VERSION, from_progress, render_table, to_json

GIB = 1 << 30


def published_disk() -> DiskProgress:
    return DiskProgress(
        source="/dev/vg0/web01",
        target="web01",
        size=100 * GIB,
        capacity=100 * GIB,
        state=TransferState.PUBLISHED,
        read=70 * GIB,
        skipped_hole=30 * GIB,
        skipped_zero=10 * GIB,
        held=2 * GIB,
        sent=60 * GIB,
        resent=GIB,
        acked=60 * GIB,
        payload=Counter(raw=5 * GIB, zstd=15 * GIB),
        wire=21 * GIB,
        started=100.0,
        finished=820.0,
        root=bytes(range(32)),
    )


def failed_disk() -> DiskProgress:
    return DiskProgress(
        source="/dev/vg0/db",
        target="db",
        size=GIB,
        state=TransferState.FAILED,
        started=110.0,
        finished=120.0,
        error="datastore nfs1 is full",
        error_code=ErrorCode.DATASTORE_FULL,
        exit_code=1,
    )


def transfer(*disks: DiskProgress) -> TransferProgress:
    return TransferProgress("esx1", "web01", list(disks), connections=4, session_wire=23 * GIB)


def test_json_of_a_published_disk_has_every_promised_field() -> None:
    disk = published_disk()
    disk.stage_seconds["read"] += 1.23456

    result = json.loads(to_json(from_progress(transfer(disk))))

    assert result["schema_version"] == SCHEMA_VERSION == 1
    assert (result["receiver"], result["vm"], result["connections"]) == ("esx1", "web01", 4)
    assert result["reconnections"] == 0
    [shown] = result["disks"]
    stages = shown["seconds"].pop("stages")
    assert stages["read"] == 1.235
    assert shown == {
        "source": "/dev/vg0/web01",
        "target": "web01",
        "size": 100 * GIB,
        "capacity": 100 * GIB,
        "state": "published",
        "published": True,
        "bytes": {
            "read": 70 * GIB,
            "skipped": {"hole": 30 * GIB, "zero": 10 * GIB},
            "held": 2 * GIB,
            "changed": 0,
            "kept": 0,
            "known": 0,
            "wanted": 0,
            "sent": 60 * GIB,
            "resent": GIB,
            "payload": {"raw": 5 * GIB, "zstd": 15 * GIB},
            "wire": 21 * GIB,
        },
        "ratio": 3.0,
        "seconds": {"total": 720.0},
        "root": bytes(range(32)).hex(),
        "error": None,
    }


def test_json_of_a_failed_disk_says_why_and_with_which_exit_code() -> None:
    [disk] = json.loads(to_json(from_progress(transfer(failed_disk()))))["disks"]
    assert disk["published"] is False
    assert (disk["ratio"], disk["root"], disk["capacity"]) == (None, None, None)
    assert disk["error"] == {
        "code": "datastore_full",
        "exit_code": 1,
        "message": "datastore nfs1 is full",
    }


def test_totals_sum_the_disks_and_take_the_whole_session_s_wire() -> None:
    totals = from_progress(transfer(published_disk(), failed_disk())).totals
    assert (totals.disks, totals.published, totals.failed) == (2, 1, 1)
    assert totals.size == 101 * GIB
    assert totals.bytes.wire == 23 * GIB
    assert totals.bytes.payload == {"raw": 5 * GIB, "zstd": 15 * GIB}
    assert totals.seconds.total == 720.0  # from the first start to the last end
    assert totals.ratio == 3.0


def test_wire_is_never_behind_the_disks_own_counts() -> None:
    progress = transfer(published_disk())
    progress.session_wire = 0
    assert from_progress(progress).totals.bytes.wire == 21 * GIB


def test_what_changed_since_an_interrupted_run_is_told_and_summed() -> None:
    changed, same = published_disk(), published_disk()
    changed.changed = 3 << 20
    result = from_progress(transfer(changed, same))
    assert (result.disks[0].bytes.changed, result.totals.bytes.changed) == (3 << 20, 3 << 20)
    lines = render_table(result).splitlines()
    assert [line for line in lines if "changed" in line] == [
        "web01: changed since the interrupted run: 3.0 MiB, sent again"
    ]


def test_pages_that_the_receiver_knew_are_told_and_summed() -> None:
    disk, same = published_disk(), published_disk()
    before = from_progress(transfer(same)).disks[0]
    disk.known = 12 << 10
    result = from_progress(transfer(disk, same))
    assert (result.disks[0].bytes.known, result.totals.bytes.known) == (12 << 10, 12 << 10)
    assert result.disks[0].bytes.sent == before.bytes.sent
    assert result.disks[0].ratio is not None
    assert before.ratio is not None
    assert result.disks[0].ratio <= before.ratio  # what was known is no merit of compression
    lines = render_table(result).splitlines()
    assert [line for line in lines if "known" in line] == [
        "web01: known to the receiver: 12.0 KiB, not sent"
    ]


def test_pages_that_were_kept_of_changed_chunks_are_told_and_summed() -> None:
    disk, same = published_disk(), published_disk()
    before = from_progress(transfer(same)).disks[0]
    disk.changed = 3 << 20
    disk.kept = (3 << 20) - (12 << 10)
    result = from_progress(transfer(disk, same))
    assert (result.disks[0].bytes.kept, result.totals.bytes.kept) == (disk.kept, disk.kept)
    assert result.disks[0].bytes.sent == before.bytes.sent
    assert result.disks[0].ratio is not None
    assert before.ratio is not None
    assert result.disks[0].ratio <= before.ratio  # what was kept is no merit of compression
    lines = render_table(result).splitlines()
    assert [line for line in lines if "changed" in line] == [
        "web01: changed since the earlier run: 12.0 KiB in pages of 3.0 MiB in chunks"
    ]


def test_a_transfer_without_disks_has_a_result() -> None:
    totals = from_progress(transfer()).totals
    assert (totals.disks, totals.ratio, totals.seconds.total) == (0, None, 0.0)


def test_json_is_one_line_and_keeps_a_path_as_it_is() -> None:
    disk = published_disk()
    disk.source = "/dev/a\nb\x1b[2J"
    line = to_json(from_progress(transfer(disk)))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\x1b" not in line
    assert json.loads(line)["disks"][0]["source"] == "/dev/a\nb\x1b[2J"


def test_json_survives_a_path_that_is_not_utf_8() -> None:
    disk = published_disk()
    disk.source = "/dev/\udcff"
    shown = json.loads(to_json(from_progress(transfer(disk))))["disks"][0]["source"]
    assert shown == "/dev/\\udcff"


def test_table_of_one_disk() -> None:
    table = render_table(from_progress(transfer(published_disk())))
    assert table.splitlines() == [
        "DISK        SIZE      DATA  ON THE WIRE  RATIO     TIME  STATE",
        "web01  100.0 GiB  60.0 GiB     21.0 GiB   3.0x  12m 00s  published",
    ]


def test_table_of_several_disks_has_a_total_and_the_reasons_below() -> None:
    table = render_table(from_progress(transfer(published_disk(), failed_disk())))
    assert table.splitlines() == [
        "DISK        SIZE      DATA  ON THE WIRE  RATIO     TIME  STATE",
        "web01  100.0 GiB  60.0 GiB     21.0 GiB   3.0x  12m 00s  published",
        "db       1.0 GiB       0 B          0 B      -      10s  failed",
        "total  101.0 GiB  60.0 GiB     23.0 GiB   3.0x  12m 00s  1 of 2 published",
        "db failed: datastore nfs1 is full",
    ]


def test_table_neutralises_hostile_names_and_messages() -> None:
    disk = failed_disk()
    disk.target = "db\x1b[31m\n\u202e"
    disk.error = "refused\r\x07"
    table = render_table(from_progress(transfer(disk)))
    assert len(table.splitlines()) == 3
    assert all(line.isprintable() for line in table.splitlines())


def test_table_does_not_call_a_cancelled_disk_failed() -> None:
    disk = failed_disk()
    disk.state, disk.error = TransferState.CANCELLED, "interrupted"
    assert "db cancelled: interrupted" in render_table(from_progress(transfer(disk)))


def test_results_tell_how_often_the_session_was_lost() -> None:
    progress = transfer(published_disk(), failed_disk())
    progress.reconnections = 3
    result = from_progress(progress)
    assert result.reconnections == 3
    assert render_table(result).splitlines()[-1] == (
        "connected again 3 times; 1.0 GiB had to be sent again, or may have had to"
    )
    progress.reconnections = 1
    assert "connected again once;" in render_table(from_progress(progress))
