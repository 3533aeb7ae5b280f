import itertools
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flatship_protocol.handshake import standing_psk
from flatship_receiver.invitations import LIFETIME, MAX_FAILURES, Invitations
from flatship_receiver.peers import Peer
from flatship_service.errors import ConfigError

NOW = 1_700_000_000.0  # seconds since 1970
SENDER = b"\7" * 32


def counting_entropy() -> Callable[[int], bytes]:
    numbers = itertools.count(1)
    return lambda length: bytes([next(numbers)]) * length


@pytest.fixture
def invitations(tmp_path: Path) -> Invitations:
    return Invitations(tmp_path)


def invite(invitations: Invitations, *, now: float = NOW) -> tuple[bytes, bytes]:
    return invitations.create(
        "kvm1", now=now, entropy=counting_entropy(), disks=("web-*",), datastores=("ssd1",)
    )


def stored(invitations: Invitations) -> list[Path]:
    return list((invitations.state / "invitations").glob("*.invitation"))


def test_id_and_secret_come_from_entropy_and_have_their_sizes(invitations: Invitations) -> None:
    assert invite(invitations) == (b"\1" * 16, b"\2" * 32)


def test_redeemed_invitation_makes_a_peer_with_its_limits_and_the_standing_psk(
    invitations: Invitations,
) -> None:
    identifier, secret = invite(invitations)

    assert invitations.redeem(identifier, SENDER, NOW) == Peer(
        public=SENDER,
        name="kvm1",
        psk=standing_psk(secret),
        disks=("web-*",),
        datastores=("ssd1",),
    )


def test_invitation_is_used_once(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)
    invitations.redeem(identifier, SENDER, NOW)

    assert invitations.redeem(identifier, SENDER, NOW) is None
    assert invitations.find(identifier, NOW) is None
    assert stored(invitations) == []


def test_looking_does_not_use_an_invitation_up(invitations: Invitations) -> None:
    identifier, secret = invite(invitations)

    for _ in range(10):
        found = invitations.find(identifier, NOW)
        assert found is not None
        assert found.secret == secret


def test_of_many_who_come_at_once_one_is_let_in(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)
    together = threading.Barrier(8)
    results: list[Peer | None] = []

    def come() -> None:
        together.wait()
        results.append(Invitations(invitations.state).redeem(identifier, SENDER, NOW))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(results) == 8
    assert sum(result is not None for result in results) == 1


def test_invitation_lasts_fifteen_minutes(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)

    assert LIFETIME == 900
    assert invitations.find(identifier, NOW + 899.9) is not None
    assert invitations.find(identifier, NOW + 900) is None
    assert invitations.redeem(identifier, SENDER, NOW + 900) is None


def test_fifth_failure_ends_an_invitation(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)

    for failure in range(1, MAX_FAILURES):
        assert invitations.record_failure(identifier) == failure
        assert invitations.find(identifier, NOW) is not None
    assert invitations.record_failure(identifier) == MAX_FAILURES == 5

    assert invitations.find(identifier, NOW) is None
    assert invitations.redeem(identifier, SENDER, NOW) is None
    assert stored(invitations) == []


def test_failures_are_counted_across_restarts(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)

    for _ in range(MAX_FAILURES):
        Invitations(invitations.state).record_failure(identifier)

    assert invitations.find(identifier, NOW) is None


def test_failure_does_not_bring_a_used_invitation_back(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)
    invitations.redeem(identifier, SENDER, NOW)

    assert invitations.record_failure(identifier) is None
    assert stored(invitations) == []


def test_unknown_id_is_no_invitation(invitations: Invitations) -> None:
    assert invitations.find(b"?" * 16, NOW) is None
    assert invitations.redeem(b"?" * 16, SENDER, NOW) is None
    assert invitations.record_failure(b"?" * 16) is None


def test_file_and_folder_are_private(invitations: Invitations) -> None:
    invite(invitations)
    (path,) = stored(invitations)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.fspath(path).endswith("01" * 16 + ".invitation")


def test_making_another_removes_those_that_are_over(invitations: Invitations) -> None:
    invite(invitations)

    invitations.create("kvm2", now=NOW + 900, entropy=lambda length: b"x" * length)

    assert [json.loads(path.read_text())["name"] for path in stored(invitations)] == ["kvm2"]


@pytest.mark.parametrize(("name", "disks"), [("a\nb", ()), ("", ()), ("kvm1", ('a"',))])
def test_what_cannot_be_authorised_later_is_refused_now(
    invitations: Invitations, name: str, disks: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError):
        invitations.create(name, now=NOW, entropy=counting_entropy(), disks=disks)

    assert stored(invitations) == []


@pytest.mark.parametrize("content", [b"{", b'{"name\xef":1}'])
def test_damaged_file_is_named(invitations: Invitations, content: bytes) -> None:
    identifier, _ = invite(invitations)
    (path,) = stored(invitations)
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"\.invitation is not readable"):
        invitations.find(identifier, NOW)


def test_repr_hides_the_secret(invitations: Invitations) -> None:
    identifier, _ = invite(invitations)

    assert "secret" not in repr(invitations.find(identifier, NOW))
