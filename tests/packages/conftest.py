"""The packages, built once, and a machine that has them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of each end."""
    for tool in ("dpkg-buildpackage", "dh_python3"):
        if shutil.which(tool) is None:
            pytest.skip(f"builds Debian packages, which takes {tool}")
    folder = tmp_path_factory.mktemp("debs")
    subprocess.run([ROOT / "scripts" / "build-debs", folder], check=True, timeout=900)
    return folder


@pytest.fixture(scope="module")
def installed(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which both have been installed; the tests of a module share it."""
    with Machine(tmp_path_factory.mktemp("machine"), [debs]) as machine:
        done = machine.run(f"dpkg --install {debs}/*.deb")
        assert "ailed" not in done.stdout + done.stderr, done.stderr
        yield machine
