"""What a thin pool's status line says."""

import pytest

from flatship_sender.sources.lvm.device_mapper import PoolStatus, read_pool_status
from flatship_sender.sources.lvm.tools import ToolFailed

WELL = "0 2097152 thin-pool 3 142/1024 512/16384 {} rw discard_passdown queue_if_no_space {} 1024 "


@pytest.mark.parametrize(("root", "reserved"), [("-", False), ("71", True)])
def test_a_pool_says_whether_its_metadata_is_held(root: str, reserved: bool) -> None:
    assert read_pool_status(WELL.format(root, "-")) == PoolStatus(reserved, None)


def test_a_pool_that_must_be_checked_says_so() -> None:
    assert read_pool_status(WELL.format("-", "needs_check")).trouble == "needs to be checked"


def test_a_pool_that_has_failed_says_so() -> None:
    assert read_pool_status("0 2097152 thin-pool Fail").trouble == "has failed"


@pytest.mark.parametrize("line", ["", "0 2097152 linear", "0 8 thin 16 15"])
def test_what_is_not_the_status_of_a_pool_is_refused(line: str) -> None:
    with pytest.raises(ToolFailed, match="not the status of a thin pool"):
        read_pool_status(line)
