"""The samples in deploy/ are what the programs read."""

import re
import tomllib
from pathlib import Path

from flatship_receiver.cli import BAD_CONFIGURATION
from flatship_receiver.config import DEFAULT_HTTP, DEFAULT_LISTEN, configure
from flatship_receiver.daemon import STOP_TIMEOUT
from flatship_service.paths import SYSTEM_CONFIG, SYSTEM_STATE

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_sample_of_a_receiver_is_a_configuration_with_the_defaults(tmp_path: Path) -> None:
    config = configure(config=DEPLOY / "receiver.toml", state=tmp_path / "state")
    assert (str(config.listen), str(config.http)) == (DEFAULT_LISTEN, DEFAULT_HTTP)
    assert config.datastores == {"ssd1": Path("/srv/nfs/ssd1")}


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


def test_the_unit_and_the_program_agree_on_folders_and_exit_codes() -> None:
    unit = (DEPLOY / "systemd" / "flatship-receiver.service").read_text()
    assert f"--config {SYSTEM_CONFIG}/receiver.toml --state {SYSTEM_STATE}/receiver" in unit
    assert f"\nRestartPreventExitStatus={BAD_CONFIGURATION}\n" in unit
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert stop
    assert int(stop[1]) > 2 * STOP_TIMEOUT
