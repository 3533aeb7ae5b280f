import os
import stat
import threading
from pathlib import Path

import pytest

from flatship_service import files

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def test_created_file_is_private_and_whole(tmp_path: Path) -> None:
    files.create(tmp_path / "f", b"content")

    assert (tmp_path / "f").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_create_does_not_touch_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")

    with pytest.raises(FileExistsError):
        files.create(tmp_path / "f", b"new")

    assert (tmp_path / "f").read_bytes() == b"old"


def test_replace_puts_a_new_file_under_the_old_name(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.replace(path, b"new")

        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("write", [files.create, files.replace])
def test_nothing_but_the_file_is_left_behind(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path / "f", b"content")

    assert os.listdir(tmp_path) == ["f"]


def test_failed_replace_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()

    with pytest.raises(OSError, match="directory"):
        files.replace(tmp_path / "d", b"content")

    assert os.listdir(tmp_path) == ["d"]


def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.replace(tmp_path / "f", b"", 0o644)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


def test_only_the_last_folder_is_private(tmp_path: Path) -> None:
    files.make_private_folder(tmp_path / "a" / "b")

    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert (tmp_path / "a").is_dir()


@AS_ROOT
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)

    files.create(tmp_path / "created", b"")
    files.replace(tmp_path / "replaced", b"")
    files.make_private_folder(tmp_path / "folder")
    with files.locked(tmp_path / "lock"):
        pass

    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {65534}
    assert len(list(tmp_path.iterdir())) == 4


@AS_ROOT
def test_root_that_may_give_nothing_away_keeps_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under the sender's unit, whose filter of system calls knows no chown."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    files.make_private_folder(tmp_path / "queue")
    files.create(tmp_path / "queue" / "created", b"")
    files.replace(tmp_path / "queue" / "replaced", b"")
    with files.locked(tmp_path / "queue" / "lock"):
        pass
    assert len(list((tmp_path / "queue").iterdir())) == 3


def test_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with files.locked(tmp_path / "lock"):
            inside.append("second")

    with files.locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        thread.join(timeout=0.05)
        assert thread.is_alive()
        inside.append("first")
    thread.join()

    assert inside == ["first", "second"]
