"""What zstd makes of a whole disk as one file: the reference for bytes on a wire."""

import json
import subprocess

from benchmarks.disk import Disk, cache_folder
from benchmarks.processes import run

_LONG = "--long=27"


def zstd_size(disk: Disk, level: int) -> int:
    """Bytes that ``zstd -LEVEL --long=27`` makes of ``disk``; kept by the disk's SHA-256.

    Takes minutes at first.

    Raises:
        BenchmarkError: zstd failed.
    """
    cache = cache_folder() / "zstd-sizes.json"
    sizes: dict[str, int] = json.loads(cache.read_text()) if cache.exists() else {}
    key = f"{_version()} -{level} {_LONG} {disk.sha256()}"
    if key not in sizes:
        pipeline = f"zstd -{level} {_LONG} -T0 -q -c {disk.path} | wc -c"
        sizes[key] = int(run([pipeline], shell=True).output)
        cache.write_text(json.dumps(sizes, indent=1))
    return sizes[key]


def _version() -> str:
    said = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split(",")[0].rsplit(maxsplit=1)[-1]
