"""The samples in deploy/ are what the programs read."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from flatship_receiver.cli import BAD_CONFIGURATION
from flatship_receiver.config import DEFAULT_HTTP, DEFAULT_LISTEN, configure
from flatship_receiver.daemon import STOP_TIMEOUT
from flatship_sender.config import read as read_sender
from flatship_service.paths import SYSTEM_CONFIG, SYSTEM_STATE

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_sample_of_a_receiver_is_a_configuration_with_the_defaults(tmp_path: Path) -> None:
    config = configure(config=DEPLOY / "receiver.toml", state=tmp_path / "state")
    assert (config.listen, config.http) == (DEFAULT_LISTEN, DEFAULT_HTTP)
    assert config.datastores == {"ssd1": Path("/srv/nfs/ssd1")}


def test_the_sample_of_a_sender_is_a_configuration_with_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.touch()
    sample = read_sender(DEPLOY / "sender.toml").value
    assert sample == read_sender(empty).value
    text = (DEPLOY / "sender.toml").read_text()
    for key in msgspec.structs.fields(type(sample)):
        assert re.search(rf"^(# )?\[?{key.encode_name}\b", text, re.MULTILINE), key.encode_name


def pins(lock: str) -> set[str]:
    """``name==version`` of each distribution in a lock."""
    text = (DEPLOY.parent / "requirements" / lock).read_text()
    return set(re.findall(r"^([a-z0-9-]+==\S+)", text, re.MULTILINE))


def test_what_is_shipped_is_what_is_tested() -> None:
    shipped = pins("runtime.lock")
    assert shipped <= pins("dev.lock")
    names = {pin.partition("==")[0] for pin in shipped}
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert re.split(r"[>=<]", requirement)[0] in names


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_a_unit_and_its_program_agree_on_folders_and_exit_codes(role: str) -> None:
    unit = (DEPLOY / "systemd" / f"flatship-{role}.service").read_text()
    assert f"--config {SYSTEM_CONFIG}/{role}.toml --state {SYSTEM_STATE}/{role}" in unit
    assert f"\nRestartPreventExitStatus={BAD_CONFIGURATION}\n" in unit
    for line in ("Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "WatchdogSec=60s"):
        assert f"\n{line}\n" in unit


def copied(role: str, folder: Path) -> Path:
    """A unit of which neither program nor manual page need be installed here."""
    text = (DEPLOY / "systemd" / f"flatship-{role}.service").read_text()
    text = text.replace(f"/usr/bin/flatship-{role}", "/bin/true")
    unit = folder / f"flatship-{role}.service"
    unit.write_text(re.sub("Documentation=.*\n", "", text))
    return unit


def verify(unit: Path) -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=True
    )
    assert verified.stderr == ""  # it ends well whatever it finds


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_a_unit_is_accepted_and_leaves_little_exposed(role: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("takes systemd-analyze")
    unit = copied(role, tmp_path)
    verify(unit)
    analysed = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit]
    subprocess.run(analysed, capture_output=True, check=True)


def test_the_drop_in_for_disk_images_is_accepted(tmp_path: Path) -> None:
    drop_in = DEPLOY / "systemd" / "sender-images.conf"
    assert re.findall("^RuntimeDirectory=(.*)$", drop_in.read_text(), re.MULTILINE) == ["flatship"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("takes systemd-analyze")
    unit = copied("sender", tmp_path)
    (tmp_path / f"{unit.name}.d").mkdir()
    shutil.copy(drop_in, tmp_path / f"{unit.name}.d")
    verify(unit)


def test_the_senders_daemon_reads_devices_and_writes_its_state_alone() -> None:
    unit = (DEPLOY / "systemd" / "flatship-sender.service").read_text()
    assert re.findall("^DeviceAllow=(.*)$", unit, re.MULTILINE) == ["block-* r"]
    assert re.findall("^ProtectSystem=(.*)$", unit, re.MULTILINE) == ["strict"]
    assert "ReadWritePaths" not in unit
    assert re.findall("^StateDirectory=(.*)$", unit, re.MULTILINE) == ["flatship/sender"]


def test_a_receiver_is_given_time_to_stop() -> None:
    unit = (DEPLOY / "systemd" / "flatship-receiver.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert stop
    assert int(stop[1]) > 2 * STOP_TIMEOUT
