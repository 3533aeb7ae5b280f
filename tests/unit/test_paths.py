import os
import stat
from pathlib import Path

import pytest

from flatship_service import paths
from flatship_service.errors import ConfigError


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def _as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


@pytest.mark.usefixtures("_as_root")
def test_root_uses_the_folders_of_the_system() -> None:
    assert paths.default_config_file("sender") == Path("/etc/flatship/sender.toml")
    assert paths.default_state_folder("receiver") == Path("/var/lib/flatship/receiver")


@pytest.mark.usefixtures("_as_user")
def test_user_has_folders_of_their_own() -> None:
    assert paths.default_config_file("sender") == Path("/home/ada/.config/flatship/sender.toml")
    assert paths.default_state_folder("sender") == Path("/home/ada/.local/state/flatship/sender")


@pytest.mark.usefixtures("_as_user")
def test_xdg_variables_move_the_folders_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")

    assert paths.default_config_file("receiver") == Path("/c/flatship/receiver.toml")
    assert paths.default_state_folder("sender") == Path("/home/ada/.local/state/flatship/sender")


def test_state_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = paths.state_folder("sender", tmp_path / "deep" / "state")

    assert path == tmp_path / "deep" / "state"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_state_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    assert paths.state_folder("sender", tmp_path) == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_state_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod go-w"):
        paths.state_folder("receiver", tmp_path)


def test_file_in_the_place_of_the_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()

    with pytest.raises(ConfigError, match="--state"):
        paths.state_folder("receiver", tmp_path / "f")
