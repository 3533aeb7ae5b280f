"""Names of volumes become paths; names that are wrong get an answer that helps."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flatship_protocol.errors import SourceMissing, SourceUnsuitable
from flatship_sender.sources.lvm.names import expand
from flatship_sender.sources.lvm.tools import ToolFailed

Ask = Callable[[str], str]


def volume(
    name: str, layout: str = "linear", role: str = "public", active: str = "active"
) -> dict[str, str]:
    hidden = name.startswith("[")
    return {
        "vg_name": "vg0",
        "lv_name": name,
        "lv_path": "" if hidden else f"/dev/vg0/{name}",
        "lv_layout": layout,
        "lv_role": role,
        "lv_active": active,
    }


def lvm_with(*volumes: dict[str, str]) -> Ask:
    def ask(group: str) -> str:
        assert group == "vg0"
        return json.dumps({"report": [{"lv": volumes}]})

    return ask


VOLUMES = lvm_with(
    volume("web_data", "thin,sparse"),
    volume("web", "thin,sparse"),
    volume("pool", "thin,pool", "private"),
    volume("[pool_tmeta]", "linear", "private,thin,pool,metadata"),
    volume("before", "linear", "public,snapshot,thicksnapshot"),
)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    (tmp_path / "mapper").mkdir()
    (tmp_path / "vg0").mkdir()
    (tmp_path / "vg0" / "web").touch()
    return tmp_path


def expanded(dev: Path, *sources: str, ask: Ask = VOLUMES) -> Sequence[str]:
    return expand(sources, dev, ask)


def test_a_volume_by_its_short_name_is_its_device(dev: Path) -> None:
    assert expanded(dev, "vg0/web") == [str(dev / "vg0" / "web")]


def test_a_group_is_its_volumes_without_pools_and_snapshots(dev: Path) -> None:
    assert expanded(dev, "vg0") == ["/dev/vg0/web", "/dev/vg0/web_data"]


def test_what_exists_as_a_path_is_that_path(
    dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.raw").touch()
    assert expanded(dev, "vg0/web", "disk.raw") == ["vg0/web", "disk.raw"]


@pytest.mark.parametrize(
    "name", ["/dev/vg0/gone", "gone.raw", "folder/gone.raw", "vg0/", "./vg0/x"]
)
def test_other_names_are_left_to_whoever_opens_them(dev: Path, name: str) -> None:
    assert expanded(dev, name) == (
        ["/dev/vg0/web", "/dev/vg0/web_data"] if name == "vg0/" else [name]
    )


def test_a_volume_that_is_not_there_is_answered_with_those_that_are(dev: Path) -> None:
    with pytest.raises(SourceMissing, match="vg0 has vg0/web, vg0/web_data"):
        expanded(dev, "vg0/wbe")


@pytest.mark.parametrize("source", ["vg0", "vg0/off"])
def test_a_volume_that_is_not_active_is_answered_with_what_activates_it(
    dev: Path, source: str
) -> None:
    ask = lvm_with(volume("off", active=""))
    with pytest.raises(SourceUnsuitable, match="lvchange --activate y"):
        expanded(dev, source, ask=ask)


def test_a_pool_is_no_disk(dev: Path) -> None:
    with pytest.raises(SourceUnsuitable, match="no disk but a part of others"):
        expanded(dev, "vg0/pool")


def test_a_group_without_volumes_is_answered_so(dev: Path) -> None:
    with pytest.raises(SourceMissing, match="has no volumes to send"):
        expanded(dev, "vg0", ask=lvm_with())


@pytest.mark.parametrize("answer", ["", "{}", '{"report": [{"lv": [{}]}]}'])
def test_an_answer_that_cannot_be_read_is_an_error(dev: Path, answer: str) -> None:
    with pytest.raises(SourceUnsuitable, match="LVM cannot be asked"):
        expanded(dev, "vg0", ask=lambda _: answer)


def test_a_tool_that_is_missing_is_an_error_that_says_so(dev: Path) -> None:
    def ask(_: str) -> str:
        raise ToolFailed("lvs cannot be run: install the package lvm2")

    with pytest.raises(SourceUnsuitable, match="install the package lvm2"):
        expanded(dev, "vg0", ask=ask)
