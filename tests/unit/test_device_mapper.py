"""What pools and snapshots say of themselves in a status line, and LVM of volumes."""

import json

import pytest

from flatship_sender.sources.lvm.device_mapper import (
    PoolStatus,
    read_pool_status,
    read_snapshot_status,
)
from flatship_sender.sources.lvm.tools import ToolFailed
from flatship_sender.sources.lvm.volumes import Volume, read_volume

WELL = "0 2097152 thin-pool 3 142/1024 512/16384 {} rw discard_passdown queue_if_no_space {} 1024 "


@pytest.mark.parametrize(("root", "reserved"), [("-", False), ("71", True)])
def test_a_pool_says_whether_its_metadata_is_held(root: str, reserved: bool) -> None:
    assert read_pool_status(WELL.format(root, "-")) == PoolStatus(
        reserved, None, data=512 / 16384, metadata=142 / 1024
    )


def test_a_pool_that_must_be_checked_says_so() -> None:
    assert read_pool_status(WELL.format("-", "needs_check")).trouble == "needs to be checked"


def test_a_pool_that_has_failed_says_so() -> None:
    assert read_pool_status("0 2097152 thin-pool Fail").trouble == "has failed"


@pytest.mark.parametrize("line", ["", "0 2097152 linear", "0 8 thin 16 15"])
def test_what_is_not_the_status_of_a_pool_is_refused(line: str) -> None:
    with pytest.raises(ToolFailed, match="not the status of a thin pool"):
        read_pool_status(line)


@pytest.mark.parametrize(
    ("said", "taken"),
    [("16/32768 16", 16 / 32768), ("32768/32768 128", 1.0), ("Invalid", None), ("Overflow", None)],
)
def test_a_snapshot_says_how_full_it_is_or_that_it_overflowed(
    said: str, taken: float | None
) -> None:
    assert read_snapshot_status(f"0 131072 snapshot {said}\n") == taken


@pytest.mark.parametrize("line", ["", "0 8 linear", "0 8 snapshot", "0 8 snapshot 1/0 0"])
def test_what_is_not_the_status_of_a_snapshot_is_refused(line: str) -> None:
    with pytest.raises(ToolFailed):
        read_snapshot_status(line)


ROW = {
    "vg_name": "vg0",
    "lv_name": "web",
    "lv_layout": "linear",
    "lv_size": "67108864",
    "pool_lv": "",
    "vg_free": "4194304",
    "vg_extent_size": "4194304",
}


def test_a_volume_is_read_from_what_lvm_reports_of_it() -> None:
    thin = {**ROW, "lv_layout": "thin,sparse", "pool_lv": "pool"}
    for row, pool in ((ROW, None), (thin, "pool")):
        text = json.dumps({"report": [{"lv": [row]}]})
        assert read_volume(text) == Volume("vg0", "web", 64 << 20, pool, 4 << 20, 4 << 20)


@pytest.mark.parametrize("rows", [[], [ROW, ROW], [{**ROW, "lv_size": "64m"}], [{"lv_name": "a"}]])
def test_a_report_that_is_not_of_one_volume_is_refused(rows: list[dict[str, str]]) -> None:
    with pytest.raises(ToolFailed):
        read_volume(json.dumps({"report": [{"lv": rows}]}))
