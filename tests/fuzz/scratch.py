"""Where the files of file decoders lie while they are read: in memory, if there is such a place."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Final

_IN_MEMORY: Final = Path("/dev/shm")


def scratch_folder() -> Path:
    """A new folder, which is removed when the program ends."""
    parent = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="flatship-fuzz-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
