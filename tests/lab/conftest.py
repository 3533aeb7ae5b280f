"""A booted guest for the tests of a module: a boot takes half a minute."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from processes import Receiver

from lab.guest import HOST, Guest, lab_image, program_disk
from lab.laboratory import Lab

VOLUMES: Final = 16 << 30  # bytes; sparse


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A guest with an empty volume group, and a receiver outside."""
    image = lab_image()
    folder = tmp_path_factory.mktemp("lab")
    volumes = folder / "volumes.img"
    with volumes.open("wb") as file:
        file.truncate(VOLUMES)
    receiver = Receiver(folder / "at-datastore")
    with Guest(folder, image, [program_disk(folder), volumes]) as guest:
        receiver.start()
        try:
            guest.run("vgcreate --quiet vg0 /dev/vdc")
            address = f"{HOST}:{receiver.address.rpartition(':')[2]}"
            invitation = receiver.invite("--address", address)
            guest.run(guest.sender("join", "--as", "esx", "-"), stdin=invitation)
            yield Lab(guest, receiver)
        finally:
            receiver.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is in this folder needs the laboratory."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
