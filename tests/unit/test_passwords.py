"""Users and their passwords: what is kept, what is refused, and what a wrong guess can tell."""

import hmac
import io
import os
import re
from pathlib import Path

import pytest

from flatship_receiver.cli import cli as receiver_cli
from flatship_sender.cli import cli as sender_cli
from flatship_service import passwords
from flatship_service.cli import run
from flatship_service.errors import ConfigError, KeyFileError
from flatship_service.passwords import PasswordHash, Users, load_users, users_line

CHEAP = "ln=4,r=8,p=1"
# hashlib.scrypt(b"password", salt=bytes(range(16)), n=16, r=8, p=1, dklen=32)
KNOWN = f"$scrypt${CHEAP}$AAECAwQFBgcICQoLDA0ODw==$SifLA7K0t5yM6JUFWSfwEu2b21TUGoi7m1p3x7fgMoI="


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOG_COST", 4)
    monkeypatch.setattr(passwords, "PARALLEL", 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.touch(0o600)
    return path


def users(**of: str) -> Users:
    return Users({name: PasswordHash.of(word.encode()) for name, word in of.items()})


def test_a_password_is_right_for_its_name_alone() -> None:
    both = users(ada="difference", bob="engine")
    assert both.check("ada", b"difference")
    assert not both.check("bob", b"difference")
    assert not both.check("ada", b"")
    assert not both.check("", b"")
    assert not both.check("eve", b"difference")


def test_the_hash_of_a_password_is_read_as_it_was_written() -> None:
    made = PasswordHash.of(b"p")
    again = PasswordHash.parse(str(made))
    assert again == made
    assert again.derive(b"p") == made.digest
    assert made.salt != PasswordHash.of(b"p").salt


def test_what_a_new_line_costs_is_what_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = users_line("ada", "difference")
    assert made.startswith("ada:$scrypt$ln=15,r=8,p=3$")


def test_a_right_password_is_known_from_then_on_and_a_wrong_one_never() -> None:
    both = users(ada="difference", bob="engine")
    assert not both.is_known("ada", b"difference")
    both.check("ada", b"wrong")
    assert not both.is_known("ada", b"wrong")
    both.check("ada", b"difference")
    assert both.is_known("ada", b"difference")
    assert not both.is_known("ada", b"engine")
    assert not both.is_known("bob", b"difference")


def test_a_wrong_name_takes_the_steps_of_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time is the same, step by step: hashing, and a comparison in constant time."""
    steps: list[str] = []
    derive, compare = PasswordHash.derive, hmac.compare_digest

    def counted_derive(self: PasswordHash, password: bytes) -> bytes:
        steps.append(f"derive {self.log_cost}")
        return derive(self, password)

    def counted_compare(left: bytes, right: bytes) -> bool:
        steps.append(f"compare {len(left)}")
        return compare(left, right)

    both = users(ada="difference", bob="engine")
    monkeypatch.setattr(PasswordHash, "derive", counted_derive)
    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    taken: dict[str, list[str]] = {}
    for name in ("ada", "eve", ""):
        steps.clear()
        assert not both.check(name, b"wrong")
        taken[name] = list(steps)
    assert taken["ada"] == ["derive 4", "compare 32"]
    assert taken["eve"] == taken["ada"] == taken[""]


def test_a_users_file_has_lines_comments_and_blanks(file: Path) -> None:
    file.write_text(f"# those of the office\n\nada:{KNOWN}\n")
    assert load_users(file).check("ada", b"password")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ada", "1: expected $scrypt$ln=…,r=…,p=…$SALT$HASH, as the password command prints"),
        ("\nada:secret-in-the-clear", "2: expected $scrypt$"),
        (":" + KNOWN, "1: expected a name of up to 64 characters, none of them a colon"),
        ("x" * 65 + ":" + KNOWN, "1: expected a name of up to 64"),
        (f"ada:{KNOWN}\nada:{KNOWN}", "2: 'ada' comes twice; keep one of the two"),
        (f"ada:{KNOWN.replace('ln=4', 'ln=30')}", "1: expected costs that take at most 256 MiB"),
        (f"ada:{KNOWN.replace('r=8', 'r=0')}", "1: expected costs that take at most 256 MiB"),
        (f"ada:{KNOWN[:-6]}", "1: expected"),
        (f"ada:{KNOWN.replace('$AAECAwQF', '$')}", "1: expected"),
        ("\x00\xff", "1: expected"),
        ("", " names nobody"),
    ],
)
def test_what_is_no_users_file_is_told_with_its_line_and_without_what_it_holds(
    text: str, said: str, file: Path
) -> None:
    file.write_bytes(text.encode("latin-1", "replace"))
    with pytest.raises(ConfigError) as caught:
        load_users(file)
    message = str(caught.value)
    assert message.startswith(f"users file {file}")
    assert said.replace("…", "") in message.replace("…", "")
    assert "secret-in-the-clear" not in message
    assert KNOWN[-20:] not in message


@pytest.mark.parametrize(
    ("mode", "refused"),
    [(0o600, False), (0o640, False), (0o604, True), (0o644, True), (0o620, True), (0o602, True)],
)
def test_a_users_file_that_others_can_read_or_write_is_refused_with_the_chmod(
    mode: int, refused: bool, file: Path
) -> None:
    file.write_text(f"ada:{KNOWN}")
    file.chmod(mode)
    if not refused:
        load_users(file)
        return
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*run: chmod 640 {file}$"):
        load_users(file)


def test_a_users_file_is_no_folder_no_pipe_and_not_without_end(file: Path) -> None:
    with pytest.raises(KeyFileError, match="is not a regular file"):
        load_users(file.parent)
    os.mkfifo(file.parent / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="is not a regular file"):
        load_users(file.parent / "pipe")
    file.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="expected at most 1 MiB"):
        load_users(file)


@pytest.mark.parametrize("program", [sender_cli, receiver_cli])
def test_the_password_command_prints_the_line_that_lets_a_user_in(
    program: object,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("difference\n"))
    assert run(program, arguments=["password", "ada"]) == 0  # type: ignore[arg-type]
    line = capfd.readouterr().out
    assert re.fullmatch(r"ada:\$scrypt\$\S+\n", line)
    assert "difference" not in line
    file.write_text(line)
    assert load_users(file).check("ada", b"difference")


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("ada", "short", "expected a password of at least 8 characters and at most 1024 bytes"),
        ("ada", "x" * 1025, "at most 1024 bytes"),
        ("a:b", "difference", "expected a name of up to 64 characters, none of them a colon"),
        ("#a", "difference", "expected a name"),
    ],
)
def test_a_name_or_a_password_that_cannot_be_used_is_refused(
    name: str,
    word: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(word + "\n"))
    assert run(receiver_cli, arguments=["password", name]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
