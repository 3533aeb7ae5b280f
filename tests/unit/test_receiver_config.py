from pathlib import Path

import pytest

from flatship_protocol.endpoint import Endpoint
from flatship_receiver.config import configure
from flatship_service.errors import ConfigError

FILE = """
listen = "192.0.2.1:7000"
log_level = "warning"

[http]
listen = "127.0.0.1:9000"

[datastore]
slow = "/slow"
fast = "/fast"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "receiver.toml"
    path.write_text(FILE)
    return path


def test_the_file_says_what_the_command_line_does_not(file: Path, tmp_path: Path) -> None:
    config = configure(config=file, state=tmp_path)
    assert config.listen == Endpoint("192.0.2.1", 7000)
    assert config.http == Endpoint("127.0.0.1", 9000)
    assert list(config.datastores.items()) == [("slow", Path("/slow")), ("fast", Path("/fast"))]
    assert config.state == tmp_path
    assert config.log_level == "warning"
    assert config.prove


def test_the_command_line_wins(file: Path, tmp_path: Path) -> None:
    listen, http = Endpoint("::1", 1), Endpoint("::1", 2)
    config = configure(
        config=file,
        state=tmp_path,
        listen=listen,
        http=http,
        datastores=(("other", Path("/other")),),
        prove=False,
    )
    assert (config.listen, config.http) == (listen, http)
    assert config.datastores == {"other": Path("/other")}
    assert not config.prove


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('listen = "nowhere"', "listen"),
        ("http = 7", "http"),
        ('congestion_control = "warp"', "congestion_control"),
        ("datastores = 1", "datastores"),
        ("[", "receiver.toml"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "receiver.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        configure(config=path, state=tmp_path)


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        configure(config=tmp_path / "missing.toml", state=tmp_path)


def test_two_datastores_of_one_name_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        configure(config=file, state=tmp_path, datastores=(("a", Path("/1")), ("a", Path("/2"))))
