import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from flatship_sender.claims import AlreadySending, EpochNotNoted, claim
from flatship_service import files
from flatship_service.errors import ConfigError


def refuse(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def claim_file(state: Path) -> Path:
    (path,) = (state / "sessions").glob("*.json")
    return path


def test_each_run_is_the_next_epoch_of_one_session(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        with claim(tmp_path, "lab", "web") as held:
            names.append(held.current)
    assert [name.epoch for name in names] == [1, 2, 3]
    assert len({name.session_id for name in names}) == 1
    assert len(names[0].session_id) == 16


def test_another_vm_or_receiver_is_another_session_at_the_same_time(tmp_path: Path) -> None:
    with (
        claim(tmp_path, "lab", "web") as a,
        claim(tmp_path, "lab", "db") as b,
        claim(tmp_path, "other", "web") as c,
        claim(tmp_path, "lab", "we b") as d,
        claim(tmp_path, "lab", "we%20b") as e,
    ):
        assert len({held.current.session_id for held in (a, b, c, d, e)}) == 5


def test_the_epoch_is_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    replace = files.replace

    def recording(path: Path, data: bytes) -> None:
        replace(path, data)
        written.append(msgspec.json.decode(data)["epoch"])

    monkeypatch.setattr(files, "replace", recording)
    with claim(tmp_path, "lab", "web") as held:
        assert written == [held.current.epoch] == [1]
        assert msgspec.json.decode(claim_file(tmp_path).read_bytes())["epoch"] == 1
        assert held.renew().epoch == 2
        assert written == [1, 2]


def test_a_run_may_have_several_epochs_of_its_session_and_the_next_run_follows(
    tmp_path: Path,
) -> None:
    with claim(tmp_path, "lab", "web") as held:
        first = held.current
        second = held.renew()
        assert held.current == second
        assert (second.session_id, second.epoch) == (first.session_id, 2)
    with claim(tmp_path, "lab", "web") as held:
        assert held.current.epoch == 3


def test_the_claim_is_held_while_epochs_follow_one_another(tmp_path: Path) -> None:
    with claim(tmp_path, "lab", "web") as held:
        held.renew()
        with pytest.raises(AlreadySending), claim(tmp_path, "lab", "web"):
            pytest.fail("two hold it")


def test_a_next_epoch_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(tmp_path, "lab", "web") as held:
        with monkeypatch.context() as patch:
            patch.setattr(files, "replace", refuse)
            with pytest.raises(EpochNotNoted, match=r"web\.json cannot be written: No space"):
                held.renew()
        assert held.current.epoch == 1
        assert held.renew().epoch == 2


def test_an_epoch_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "replace", refuse)
    with pytest.raises(EpochNotNoted, match="No space"), claim(tmp_path, "lab", "web"):
        pytest.fail("the epoch was used")


def test_a_folder_in_which_nothing_can_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sessions").touch()
    with (
        pytest.raises(EpochNotNoted, match=r"web\.lock cannot be written: Not a directory"),
        claim(tmp_path, "lab", "web"),
    ):
        pytest.fail("the claim was given")


def test_a_run_that_failed_has_used_its_epoch_up(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claim(tmp_path, "lab", "web"):
        raise RuntimeError
    with claim(tmp_path, "lab", "web") as held:
        assert held.current.epoch == 2


def test_a_second_process_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flatship_sender.claims import claim\n"
        "with claim(Path(sys.argv[1]), 'lab', 'web'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadySending, match="web to lab"), claim(tmp_path, "lab", "web"):
            pytest.fail("two hold it")
        other.kill()
    with claim(tmp_path, "lab", "web") as held:
        assert held.current.epoch == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b'{"session_id": "00"}',
        b'{"session_id": "00112233445566778899aabbccddeeff", "epoch": "x"}',
        b'{"session_id": "xyz", "epoch": 1}',
        b'{"session_id": "00", "epoch": 1}',
        b'{"session\xef":1}',
        b'{"session_id":"' + b"0" * 32 + b'","epoch":18446744073709551615}',
    ],
)
def test_a_damaged_file_is_named_and_not_replaced(tmp_path: Path, damage: bytes) -> None:
    with claim(tmp_path, "lab", "web"):
        pass
    claim_file(tmp_path).write_bytes(damage)
    with pytest.raises(ConfigError, match="remove it"), claim(tmp_path, "lab", "web"):
        pytest.fail("a damaged claim was used")
    assert claim_file(tmp_path).read_bytes() == damage
