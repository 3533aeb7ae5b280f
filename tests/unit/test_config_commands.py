"""``config check`` and ``config show`` of both programs, on good configurations and on bad ones."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from flatship_receiver.cli import cli as receiver_cli
from flatship_receiver.config import read as read_receiver
from flatship_sender.cli import cli as sender_cli
from flatship_sender.config import read as read_sender
from flatship_service.cli import run
from flatship_service.configfile import Loaded
from flatship_service.passwords import users_line

SECRET = "correct horse battery"

RECEIVER = """\
listen = "127.0.0.1:7000"
[datastore]
nfs1 = "/srv/vmware"
"b c" = '/srv/b c'
"""
SENDER = """\
jobs = 3
[limits]
rate = "unlimited"
[[limits.schedule]]
days = ["sat-sun"]
from = "08:00"
to = "18:00"
rate = "2MB"
[limits.receivers."a b"]
rate = "20MB"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "it.toml"


def check(program: click.Group, path: Path) -> int:
    return run(program, arguments=["config", "check", "--config", str(path)])


def errors(program: click.Group, path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that check says, without the path of the file."""
    assert check(program, path) == 2
    out, err = capfd.readouterr()
    assert out == ""
    return [line.replace(str(path), "FILE").removeprefix("error: ") for line in err.splitlines()]


def shown(
    program: click.Group, path: Path, capfd: pytest.CaptureFixture[str], *options: str
) -> str:
    assert run(program, arguments=["config", "show", "--config", str(path), *options]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize(("program", "text"), [(receiver_cli, RECEIVER), (sender_cli, SENDER)])
def test_a_good_configuration_is_checked_in_silence(
    program: click.Group, text: str, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(text)
    assert check(program, path) == 0
    assert capfd.readouterr() == ("", "")


def test_all_that_is_wrong_is_told_at_once_each_with_file_line_and_key(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(
        'listen = "0.0.0.0"\nlsiten = 3\nlog_level = "loud"\n[http]\ncertificate = "/c"\n'
        'workers = 1\n[datastore]\n"a/b" = "/x"\n\nnfs = 7\n'
    )
    told = errors(receiver_cli, path, capfd)
    assert told[:3] == [
        "FILE:1: listen: expected HOST:PORT or [IPv6]:PORT, got '0.0.0.0'",
        "FILE:2: lsiten: unknown key; did you mean listen?",
        "FILE:3: log_level: expected one of: debug, info, warning, error; got 'loud'",
    ]
    assert told[3].startswith("FILE:6: http.workers: unknown key; expected one of: ")
    assert told[4].startswith('FILE:8: datastore."a/b": a datastore cannot be called that: ')
    assert told[5] == "FILE:10: datastore.nfs: expected a string such as people write, got int"


def test_several_files_are_told_of_at_once_also_where_one_is_no_toml(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text("jobs = true\n")
    fragments = path.parent / "it.conf.d"
    fragments.mkdir()
    (fragments / "1.toml").write_text("jobs = [\n")
    (fragments / "2.toml").write_text('\n[limits]\nrate = "1kB"\n')
    assert errors(sender_cli, path, capfd) == [
        f"{fragments}/1.toml:1: not TOML: Invalid value",
        "FILE:1: jobs: expected int, got bool",
        f"{fragments}/2.toml:3: limits.rate: expected at least 8KiB/s, or the receiver takes the"
        " link for dead; got 1000 bytes a second",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jobs = 0", "FILE:1: jobs: expected int >= 1, got 0"),
        ("jobs = 1.5", "FILE:1: jobs: expected int, got float"),
        (
            "congestion_control = []",
            "FILE:1: congestion_control: expected a string such as people write, got list",
        ),
        ("[[limits]]\nrate = 1", "FILE:1: limits: expected table, got array"),
        ("[limits]\nreceivers = 7", "FILE:2: limits.receivers: expected table, got int"),
        ('http = "127.0.0.1:1"', "FILE:1: http: expected table, got str"),
        ('[http]\nkey = "/k"', "FILE:1: http.certificate: required beside key, and missing"),
        (
            '[limits.receivers.a]\nrate = "1MB"\n\n[limits.receivers.a]\nrate = "2MB"',
            "FILE:4: not TOML at column 20: this key or table is set twice in this file; keep one"
            " of the two",
        ),
        (
            '[limits.receivers]\na = { rate = "1MB" }\na = { rate = "2MB" }',
            "FILE:3: not TOML: this key or table is set twice in this file; keep one of the two",
        ),
        ("jobs = ", "FILE:1: not TOML: Invalid value"),
        ("\n\njobs = \x01", "FILE:3: not TOML at column 8: Invalid value"),
        ("[" * 5000, "FILE:1: not TOML at column 3: Invalid initial character for a key part"),
        ("a = " + "[" * 5000, "FILE: tables or arrays stand in each other too deeply"),
    ],
)
def test_what_a_sender_cannot_use_is_told_with_its_line(
    text: str, said: str, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(text)
    assert errors(sender_cli, path, capfd) == [said]


def test_a_datastore_that_comes_twice_is_told_with_its_line(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text('[datastore]\nnfs1 = "/a"\nnfs1 = "/b"\n')
    (told,) = errors(receiver_cli, path, capfd)
    assert told.startswith("FILE:3: not TOML at column 12: this key or table is set twice")


def test_a_file_is_told_of_that_is_missing_binary_or_without_end(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (missing,) = errors(sender_cli, path, capfd)
    assert missing == "configuration file FILE does not exist"
    path.write_bytes(b"jobs = 1\n# \xff")
    assert errors(sender_cli, path, capfd) == ["FILE:2: not UTF-8 at byte 11"]
    path.write_bytes(b"#" * (2 << 20))
    (long,) = errors(sender_cli, path, capfd)
    assert long == "FILE: expected at most 1 MiB; this is no configuration"
    (path.parent / "it.conf.d").write_text("")
    path.write_text("")
    assert check(sender_cli, path) == 0


def test_files_with_secrets_are_checked_and_the_chmod_is_named(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users = path.with_name("users")
    users.write_text(users_line("admin", SECRET) + "\n")
    users.chmod(0o644)
    path.write_text(f'\n[http]\nusers_file = "{users}"\n')
    (told,) = errors(receiver_cli, path, capfd)
    assert told == (
        f"FILE:3: http.users_file: users file {users} has mode 0644, so that others can use what"
        f" is in it; if they have not read it, run: chmod 640 {users}"
    )
    for mode in (0o640, 0o600):
        users.chmod(mode)
        assert check(receiver_cli, path) == 0
    users.unlink()
    (told,) = errors(receiver_cli, path, capfd)
    assert told == f"FILE:3: http.users_file: users file {users} does not exist"


@pytest.mark.parametrize(
    ("program", "read", "text"),
    [(receiver_cli, read_receiver, RECEIVER), (sender_cli, read_sender, SENDER)],
    ids=["receiver", "sender"],
)
@pytest.mark.parametrize("options", [(), ("--effective",)])
def test_what_is_shown_can_be_read_again_and_means_the_same(
    program: click.Group,
    read: Callable[[Path | None], Loaded[Any]],
    text: str,
    options: tuple[str, ...],
    path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path.write_text(text)
    before = read(path).value
    path.write_text(shown(program, path, capfd, *options))
    assert read(path).value == before


def test_each_value_is_shown_with_where_it_was_set(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_text(RECEIVER)
    fragment = path.parent / "it.conf.d" / "5.toml"
    fragment.parent.mkdir()
    fragment.write_text('\nlisten = "[::]:7"\n[http]\nlisten = "127.0.0.1:1"\n')
    lines = shown(receiver_cli, path, capfd, "--effective").splitlines()
    origins = {line.partition(" =")[0]: line.rpartition("# ")[2] for line in lines if " =" in line}
    assert lines[0] == f"# read: {path}, {fragment}"
    assert origins["nfs1"] == f"{path}:3"
    assert origins['"b c"'] == f"{path}:4"
    assert origins["log_level"] == "default"
    assert origins["# congestion_control"] == "not set"
    assert [line for line in lines if "listen" in line and str(fragment) in line] == [
        line for line in lines if line.startswith("listen")
    ]
    only_set = tomllib.loads(shown(receiver_cli, path, capfd))
    assert set(only_set) == {"listen", "datastore", "http"}


def test_no_secret_is_ever_shown(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    users = path.with_name("users")
    line = users_line("admin", SECRET)
    users.write_text(line)
    users.chmod(0o600)
    path.write_text(f'[http]\nusers_file = "{users}"\n')
    text = shown(receiver_cli, path, capfd, "--effective")
    assert str(users) in text
    users.write_text(line[:-8])
    text += "".join(errors(receiver_cli, path, capfd))
    for part in (SECRET, *line.split("$")[3:]):
        assert part[:16] not in text


def test_checking_and_showing_make_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(path.parent / "state"))
    path.write_text(RECEIVER)
    before = os.listdir(path.parent)
    assert check(receiver_cli, path) == 0
    shown(receiver_cli, path, capfd)
    assert os.listdir(path.parent) == before
