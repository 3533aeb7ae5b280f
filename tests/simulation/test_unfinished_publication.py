"""A publication that an error cut off after it was decided: the same command sees it to its end."""

import errno
from pathlib import Path

import pytest
from fakes import world
from test_in_process_transfers import MIB, only, padded, run, send

from flatship_protocol.errors import ErrorCode
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.journal import ImageState, Journal
from flatship_sender.progress import TransferState
from flatship_sender.sources.memory import MemorySource

DATA = bytes(MIB) + b"content" * 1000 + bytes(MIB - 7000)


@pytest.fixture
def failing_after_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first rename after the one that decides fail, once."""
    rename, renamed = Folder.rename, list[str]()

    def failing(folder: Folder, old: str, new: str) -> None:
        renamed.append(new)
        if len(renamed) == 2:
            raise OSError(errno.EIO, "the medium fails")
        rename(folder, old, new)

    monkeypatch.setattr(Folder, "rename", failing)


@pytest.mark.usefixtures("failing_after_the_decision")
def test_the_same_command_again_finds_it_published_and_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "ssd").mkdir()
    store = LocalDatastore("ssd", str(tmp_path / "ssd"))

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            failed = await send(at, MemorySource(DATA))
            assert only(failed).error_code is ErrorCode.WRITE_FAILED
            assert not (tmp_path / "ssd" / "web" / "web.vmdk").exists()
            done = await send(at, MemorySource(DATA), epoch=2)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).sent == 0
            (image,) = await at.journal.run(Journal.images)
            assert image.state is ImageState.COMPLETE

    run(scenario)
    assert (tmp_path / "ssd" / "web" / "web-flat.vmdk").read_bytes() == padded(DATA)


@pytest.mark.usefixtures("failing_after_the_decision")
def test_another_source_of_that_name_does_not_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "ssd").mkdir()
    store = LocalDatastore("ssd", str(tmp_path / "ssd"))

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(DATA))
            other = await send(at, MemorySource(DATA[::-1]), epoch=2)
            assert only(other).error_code is ErrorCode.DISK_EXISTS

    run(scenario)
    assert (tmp_path / "ssd" / "web" / "web-flat.vmdk").read_bytes() == padded(DATA)
