"""What the benchmark of a second guest says two disks have in common."""

from pathlib import Path

import pytest

from benchmarks.disk import Disk, describe
from benchmarks.packaged_guests import PAGE, Shared, shared_pages


def made(path: Path, pages: str) -> Disk:
    """A disk of one page a letter; a dot is a page of zeros."""
    path.write_bytes(b"".join(bytes(PAGE) if p == "." else p.encode() * PAGE for p in pages))
    return describe(path)


@pytest.mark.parametrize(
    ("known", "disk", "shared"),
    [
        ("abc", "abc", Shared(pages=3, known=3, runs=1)),
        ("abc", "cab", Shared(pages=3, known=3, runs=2)),
        (".ab.", "..ax.b.", Shared(pages=3, known=2, runs=2)),
        ("..", "xy", Shared(pages=2, known=0, runs=0)),
        ("aab", "aab", Shared(pages=3, known=3, runs=3)),  # the first of equal pages counts
    ],
)
def test_pages_that_another_disk_has_are_found_wherever_they_are(
    tmp_path: Path, known: str, disk: str, shared: Shared
) -> None:
    assert shared_pages(made(tmp_path / "known", known), made(tmp_path / "disk", disk)) == shared
