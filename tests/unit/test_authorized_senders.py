import os
import stat
from pathlib import Path

import pytest

from flatship_protocol.errors import UsageError
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.peers import NO_PSK, Peer
from flatship_service.errors import ConfigError, KeyFileError, NotFoundError
from flatship_service.keys import format_key

KVM1 = Peer(public=b"\1" * 32, name="kvm1", psk=b"P" * 32, disks=("web-*",))
KVM2 = Peer(public=b"\2" * 32, name="kvm2")
EDITED = f"# our hosts\n\n{format_key(KVM2.public)} kvm2\n  # the end\n"


@pytest.fixture
def senders(tmp_path: Path) -> AuthorizedSenders:
    return AuthorizedSenders(tmp_path)


def psk_file(state: Path) -> Path:
    (path,) = (state / "psk").iterdir()
    return path


def test_without_a_file_nobody_is_authorised(senders: AuthorizedSenders) -> None:
    assert senders.peers() == ()
    assert senders.find(KVM1.public) is None


def test_added_peer_is_found_with_its_options_and_psk(senders: AuthorizedSenders) -> None:
    senders.add(KVM1)
    senders.add(KVM2)

    assert senders.find(KVM1.public) == KVM1
    assert senders.peers() == (KVM1, KVM2)


def test_files_are_private_and_hold_no_psk_but_in_its_place(
    senders: AuthorizedSenders, tmp_path: Path
) -> None:
    senders.add(KVM1)

    assert stat.S_IMODE(senders.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(psk_file(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "psk").stat().st_mode) == 0o700
    assert format_key(KVM1.psk) not in senders.path.read_text()


def test_key_entered_by_hand_has_a_psk_of_zeros(senders: AuthorizedSenders) -> None:
    senders.path.write_text(EDITED)

    peer = senders.find(KVM2.public)

    assert peer is not None
    assert peer.psk == NO_PSK


def test_change_by_another_process_is_seen(senders: AuthorizedSenders, tmp_path: Path) -> None:
    serving = AuthorizedSenders(tmp_path)
    senders.add(KVM1)
    assert serving.find(KVM1.public) == KVM1

    senders.revoke(KVM1.fingerprint)

    assert serving.find(KVM1.public) is None


def test_new_psk_of_a_known_peer_is_seen(senders: AuthorizedSenders, tmp_path: Path) -> None:
    serving = AuthorizedSenders(tmp_path)
    senders.add(KVM1)
    assert serving.find(KVM1.public) == KVM1
    again = Peer(KVM1.public, "kvm1", psk=b"Q" * 32, disks=("web-*",))

    senders.add(again)

    assert serving.find(KVM1.public) == again


def test_unchanged_file_is_not_read_again(senders: AuthorizedSenders, tmp_path: Path) -> None:
    senders.add(KVM1)
    first = senders.find(KVM1.public)

    assert senders.find(KVM1.public) is first


def test_comments_and_blank_lines_are_kept(senders: AuthorizedSenders) -> None:
    senders.path.write_text(EDITED)

    senders.add(KVM1)
    senders.revoke(KVM1.fingerprint)

    assert senders.path.read_text() == EDITED


def test_adding_a_known_key_replaces_its_line(senders: AuthorizedSenders) -> None:
    senders.path.write_text(EDITED)

    senders.add(Peer(KVM2.public, "renamed"))

    assert senders.path.read_text() == EDITED.replace("kvm2", "renamed")


def test_revoked_peer_leaves_no_psk_behind(senders: AuthorizedSenders, tmp_path: Path) -> None:
    senders.add(KVM1)

    assert senders.revoke(KVM1.fingerprint) == KVM1
    assert list((tmp_path / "psk").iterdir()) == []


@pytest.mark.parametrize("length", [4, 10, 43])
@pytest.mark.parametrize("algorithm", ["SHA256:", ""])
def test_unique_start_of_a_fingerprint_is_enough_to_revoke(
    senders: AuthorizedSenders, length: int, algorithm: str
) -> None:
    senders.add(KVM1)
    senders.add(KVM2)

    senders.revoke(algorithm + KVM1.fingerprint.removeprefix("SHA256:")[:length])

    assert senders.peers() == (KVM2,)


@pytest.mark.parametrize("prefix", ["", "SHA256:", "SHA256:abc"])
def test_too_short_a_fingerprint_revokes_nobody(senders: AuthorizedSenders, prefix: str) -> None:
    senders.add(KVM1)

    with pytest.raises(UsageError, match="at least 4"):
        senders.revoke(prefix)

    assert senders.peers() == (KVM1,)


def test_fingerprint_that_fits_several_revokes_nobody(
    senders: AuthorizedSenders, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders.add(KVM1)
    senders.add(KVM2)
    monkeypatch.setattr(Peer, "fingerprint", property(lambda peer: f"SHA256:same{peer.name}"))

    with pytest.raises(UsageError, match=r"several senders: .*kvm1.*kvm2"):
        senders.revoke("same")

    assert len(senders.peers()) == 2


def test_unknown_fingerprint_lists_the_known(senders: AuthorizedSenders) -> None:
    senders.add(KVM1)

    with pytest.raises(NotFoundError, match=r"known: SHA256:.* \(kvm1\)") as caught:
        senders.revoke("SHA256:????")

    assert caught.value.exit_code == 10


def test_wrong_line_is_named_by_file_and_number(senders: AuthorizedSenders) -> None:
    senders.path.write_text(EDITED + "nonsense\n")

    with pytest.raises(ConfigError, match=r"authorized_senders, line 5: expected a key"):
        senders.peers()


def test_key_that_is_there_twice_is_refused(senders: AuthorizedSenders) -> None:
    senders.path.write_text(EDITED + f"disks=a {format_key(KVM2.public)}\n")

    with pytest.raises(ConfigError, match="line 5: the key of kvm2 a second time"):
        senders.peers()


def test_file_that_became_wrong_authorises_nobody_each_time(senders: AuthorizedSenders) -> None:
    senders.add(KVM1)
    assert senders.find(KVM1.public)
    senders.path.write_text("nonsense\n")

    for _ in range(2):
        with pytest.raises(ConfigError):
            senders.find(KVM1.public)


def test_wrong_file_is_not_rewritten(senders: AuthorizedSenders) -> None:
    senders.path.write_text("nonsense\n")

    with pytest.raises(ConfigError):
        senders.add(KVM1)
    with pytest.raises(ConfigError):
        senders.revoke(KVM1.fingerprint)

    assert senders.path.read_text() == "nonsense\n"


@pytest.mark.parametrize("mode", [0o660, 0o602])
def test_file_that_others_may_write_to_is_refused(senders: AuthorizedSenders, mode: int) -> None:
    senders.add(KVM1)
    senders.path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod go-w"):
        AuthorizedSenders(senders.state).find(KVM1.public)


def test_psk_that_others_may_read_is_refused(senders: AuthorizedSenders, tmp_path: Path) -> None:
    senders.add(KVM1)
    psk_file(tmp_path).chmod(0o644)

    with pytest.raises(KeyFileError, match="chmod 600"):
        AuthorizedSenders(tmp_path).find(KVM1.public)


def test_nothing_temporary_is_left_behind(senders: AuthorizedSenders, tmp_path: Path) -> None:
    senders.add(KVM1)

    assert sorted(os.listdir(tmp_path)) == [".authorized_senders.lock", "authorized_senders", "psk"]
