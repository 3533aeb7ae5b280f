import os
import stat
from pathlib import Path

import pytest

from flatship_service.errors import KeyFileError
from flatship_service.keys import (
    Identity,
    fingerprint,
    format_key,
    load_or_create_identity,
    parse_key,
    read_secret,
    write_secret,
)

# RFC 7748, section 5.2: the first iteration, X25519(9, 9).
NINE = bytes([9]) + bytes(31)
NINE_PUBLIC = bytes.fromhex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
KEY = bytes(range(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_use_makes_a_private_key_and_a_public_copy(tmp_path: Path) -> None:
    identity = load_or_create_identity(tmp_path)

    assert mode(tmp_path / "identity.key") == 0o600
    assert mode(tmp_path / "identity.pub") == 0o644
    assert (tmp_path / "identity.pub").read_text() == format_key(identity.public) + "\n"
    assert sorted(os.listdir(tmp_path)) == ["identity.key", "identity.pub"]


def test_later_uses_find_the_same_identity(tmp_path: Path) -> None:
    assert load_or_create_identity(tmp_path) == load_or_create_identity(tmp_path)


def test_two_folders_have_different_identities(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    assert load_or_create_identity(tmp_path) != load_or_create_identity(tmp_path / "other")


def test_public_key_is_that_of_the_private_key(tmp_path: Path) -> None:
    write_secret(tmp_path / "identity.key", NINE)

    assert load_or_create_identity(tmp_path).public == NINE_PUBLIC


def test_wrong_public_copy_is_put_right(tmp_path: Path) -> None:
    identity = load_or_create_identity(tmp_path)
    (tmp_path / "identity.pub").write_text("nonsense\n")

    load_or_create_identity(tmp_path)

    assert (tmp_path / "identity.pub").read_text() == format_key(identity.public) + "\n"


@pytest.mark.parametrize("bits", [0o640, 0o620, 0o604, 0o644])
def test_key_that_others_can_use_is_refused_with_what_to_do(tmp_path: Path, bits: int) -> None:
    load_or_create_identity(tmp_path)
    (tmp_path / "identity.key").chmod(bits)

    with pytest.raises(KeyFileError, match=f"has mode 0{bits:o}.*chmod 600"):
        load_or_create_identity(tmp_path)


@pytest.mark.parametrize("content", ["", "short", format_key(KEY[:31]), "é" * 44])
def test_damaged_key_is_an_error_that_names_the_file_and_not_its_content(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "identity.key"
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(KeyFileError, match=r"identity\.key: expected a key") as caught:
        load_or_create_identity(tmp_path)

    assert not content or content not in str(caught.value)


def test_damaged_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.write_text("damaged")
    path.chmod(0o600)

    with pytest.raises(KeyFileError):
        load_or_create_identity(tmp_path)

    assert path.read_text() == "damaged"


def test_folder_that_is_missing_is_an_error_for_operators(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        load_or_create_identity(tmp_path / "missing")


def test_repr_of_an_identity_hides_the_private_key() -> None:
    shown = repr(Identity(b"P" * 32, KEY))

    assert "PPPP" not in shown
    assert "public" in shown


def test_fingerprint_is_written_as_ssh_writes_it() -> None:
    assert fingerprint(bytes(32)) == "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"


def test_key_survives_its_text_form() -> None:
    assert parse_key(format_key(KEY) + "\n") == KEY


@pytest.mark.parametrize(
    "text", ["", "A" * 44, "%" * 44, format_key(KEY)[:-1], format_key(KEY) + " x"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        parse_key(text)


def test_secret_survives_its_file(tmp_path: Path) -> None:
    write_secret(tmp_path / "psk", KEY)

    assert read_secret(tmp_path / "psk") == KEY
    assert mode(tmp_path / "psk") == 0o600


def test_secret_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="psk does not exist"):
        read_secret(tmp_path / "psk")


def test_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="null"):
        read_secret(tmp_path / "a\0b")


def test_pipe_in_the_place_of_a_secret_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "psk", 0o600)

    with pytest.raises(KeyFileError, match="not a regular file"):
        read_secret(tmp_path / "psk")
