"""Whether a job's sources are there, asked without waiting for a file system that hangs."""

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import Final

from flatship_protocol.errors import SourceMissing, TransferError
from flatship_sender.refusals import TRY_AGAIN

TIMEOUT: Final = 5.0  # seconds
MAX_LOOKS: Final = 4  # at once; each may keep a thread for as long as its file system hangs


class SourcesDoNotAnswer(TransferError):
    """Where the sources are, nobody answers."""

    exit_code = TRY_AGAIN

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path}: its file system does not answer; is the server that has it up?"
            " To have it tried later, give a time with --not-before"
        )


class Sources:
    """Looks for sources as the daemon sees them."""

    def __init__(self) -> None:
        self._looking = 0

    async def check(self, paths: Sequence[str]) -> None:
        """Make sure that all are there.

        Raises:
            SourceMissing: One is not.
            SourcesDoNotAnswer: It cannot be told.
        """
        if self._looking >= MAX_LOOKS:
            raise SourcesDoNotAnswer(paths[0])
        loop = asyncio.get_running_loop()
        found: asyncio.Future[str | None] = loop.create_future()

        def look() -> None:
            missing = next((path for path in paths if not os.path.lexists(path)), None)
            loop.call_soon_threadsafe(tell, missing)

        def tell(missing: str | None) -> None:
            self._looking -= 1
            if not found.done():
                found.set_result(missing)

        self._looking += 1
        # A daemon's thread: one that hangs must not keep the process from its end.
        threading.Thread(target=look, name="flatship-sources", daemon=True).start()
        try:
            async with asyncio.timeout(TIMEOUT):
                missing = await found
        except TimeoutError:
            raise SourcesDoNotAnswer(paths[0]) from None
        if missing is not None:
            raise SourceMissing(
                f"{missing}: there is no such source on the daemon's host; name one that is there,"
                " or give a time with --not-before if it is to appear until then"
            )
