import stat
from pathlib import Path

import pytest

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import UsageError
from flatship_sender.receivers import NO_PSK, Receiver, Receivers, default_name
from flatship_service.errors import ConfigError, ConflictError, KeyFileError, NotFoundError
from flatship_service.keys import format_key

ESX1 = Receiver("esx1", Endpoint("esx1.example.com", 7000), b"\1" * 32, psk=b"P" * 32)


@pytest.fixture
def receivers(tmp_path: Path) -> Receivers:
    return Receivers(tmp_path)


def write(receivers: Receivers, text: str) -> None:
    folder = receivers.state / "receivers.d"
    folder.mkdir(exist_ok=True)
    (folder / "esx1.toml").write_text(text)


@pytest.mark.parametrize(
    "receiver",
    [
        ESX1,
        Receiver("a.b-c_d", Endpoint("2001:db8::1", 1), b"\2" * 32),
        Receiver("192.0.2.1", Endpoint("192.0.2.1", 1), b"\2" * 32, psk=b"Q" * 32),
    ],
)
def test_saved_receiver_is_loaded(receivers: Receivers, receiver: Receiver) -> None:
    receivers.save(receiver)

    assert receivers.load(receiver.name) == receiver
    assert receivers.names() == [receiver.name]


def test_psk_is_in_a_private_file_of_its_own(receivers: Receivers) -> None:
    receivers.save(ESX1)
    folder = receivers.state / "receivers.d"

    assert stat.S_IMODE((folder / "esx1.psk").stat().st_mode) == 0o600
    assert format_key(ESX1.psk) not in (folder / "esx1.toml").read_text()


def test_receiver_entered_by_hand_needs_no_psk(receivers: Receivers) -> None:
    write(receivers, f'endpoint = "esx1:7000"\npublic_key = "{format_key(ESX1.public)}"\n')

    assert receivers.load("esx1").psk == NO_PSK


def test_unknown_name_lists_the_known(receivers: Receivers) -> None:
    receivers.save(ESX1)

    with pytest.raises(NotFoundError, match=r"no receiver esx2; known: esx1") as caught:
        receivers.load("esx2")

    assert caught.value.exit_code == 10


def test_without_any_receiver_the_error_says_how_to_get_one(receivers: Receivers) -> None:
    with pytest.raises(NotFoundError, match="flatship-sender join"):
        receivers.load("esx1")


def test_other_receiver_of_the_same_name_is_not_overwritten(receivers: Receivers) -> None:
    receivers.save(ESX1)
    other = Receiver("esx1", ESX1.endpoint, b"\2" * 32, psk=b"Q" * 32)

    with pytest.raises(ConflictError, match="--as"):
        receivers.check_free("esx1", other.public)
    with pytest.raises(ConflictError, match="--as"):
        receivers.save(other)

    assert receivers.load("esx1") == ESX1


def test_same_receiver_is_updated(receivers: Receivers) -> None:
    receivers.save(ESX1)
    moved = Receiver("esx1", Endpoint("192.0.2.1", 7001), ESX1.public, psk=b"Q" * 32)

    receivers.check_free("esx1", moved.public)
    receivers.save(moved)

    assert receivers.load("esx1") == moved


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../etc", "a/b", ".hidden", "a b", "a\n", "é", "a" * 64]
)
def test_name_that_could_be_a_path_is_refused(receivers: Receivers, name: str) -> None:
    with pytest.raises(UsageError, match="receiver name"):
        receivers.load(name)
    with pytest.raises(UsageError, match="receiver name"):
        receivers.save(Receiver(name, ESX1.endpoint, ESX1.public))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('public_key = "x"', r"esx1\.toml: endpoint: required"),
        ('endpoint = "esx1"\npublic_key = "x"', r"esx1\.toml:1: endpoint: expected HOST:PORT"),
        ('endpoint = "esx1:1"\npublic_key = "x"', r"esx1\.toml:2: public_key: expected a key"),
        ('endpoint = "esx1:1"\nkey = "x"', r"esx1\.toml: (key|public_key): "),
    ],
)
def test_wrong_file_is_named_with_its_key(receivers: Receivers, text: str, message: str) -> None:
    write(receivers, text)

    with pytest.raises(ConfigError, match=message):
        receivers.load("esx1")


def test_psk_that_others_may_read_is_refused(receivers: Receivers) -> None:
    receivers.save(ESX1)
    (receivers.state / "receivers.d" / "esx1.psk").chmod(0o640)

    with pytest.raises(KeyFileError, match="chmod 600"):
        receivers.load("esx1")


def test_repr_hides_the_psk() -> None:
    assert "PPPP" not in repr(ESX1)


@pytest.mark.parametrize(
    ("host", "name"), [("esx1.example.com", "esx1.example.com"), ("2001:db8::1", "2001-db8--1")]
)
def test_receiver_is_called_by_its_host_unless_told_otherwise(host: str, name: str) -> None:
    assert default_name(Endpoint(host, 7000)) == name
