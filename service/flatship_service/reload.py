"""A daemon reads its configuration again: all of it is read and judged before anything changes.

What a daemon has to do is one call, ``reloading``, with a ``Reload`` that knows how its
configuration is read, and what of it can change while the daemon runs::

    reload = Reload(config, read, apply, fixed=("listen", "state"), told=metrics.config_read)
    await cleanup.enter_async_context(reloading(reload, notifier, stop.set, "listening"))
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from flatship_service.configfile import WrongConfiguration
from flatship_service.errors import OperatorError
from flatship_service.notify import Notifier
from flatship_service.signals import on_hangup

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

LEAVE_TIMEOUT: Final = 1.0  # seconds for a reading that is under way; it may wait for storage

log = structlog.get_logger()


@dataclass(slots=True)
class Reload(Generic[C]):
    """How a daemon's configuration is read again.

    Args:
        config: That in force; a dataclass.
        read: Reads and checks it anew, in a thread. An OperatorError leaves all as it was.
        apply: Given the new one, makes ready what it asks for and then swaps. An OperatorError
            leaves all as it was: it comes before the swap. Returns keys that wait for a restart.
        fixed: Fields that only a restart changes; ``apply`` need not look at them.
        told: Told whether it went well.
    """

    config: C
    read: Callable[[], C]
    apply: Callable[[C], Awaitable[Sequence[str]]]
    fixed: Sequence[str]
    told: Callable[[bool], None]

    async def run(self) -> bool:
        """Read it again, and say in the log what came of it. Returns whether it is in force."""
        try:
            new = await asyncio.to_thread(self.read)
            waiting = list(await self.apply(new))
        except OperatorError as error:
            problems = error.problems if isinstance(error, WrongConfiguration) else (error,)
            for problem in problems:
                log.error("configuration kept as it was", reason=str(problem))  # noqa: TRY400
            self.told(False)
            return False
        old, names = self.config, [each.name for each in fields(new)]
        changed = [name for name in names if getattr(new, name) != getattr(old, name)]
        kept = {name: getattr(old, name) for name in changed if name in self.fixed}
        for name in (*kept, *waiting):
            log.warning("takes a restart; it stays as it was until then", key=name)
        now = ", ".join(name for name in changed if name not in kept)
        log.info("configuration read again", changed=now or "nothing")
        self.config = replace(new, **kept)
        self.told(True)
        return True


@asynccontextmanager
async def reloading(
    reload: "Reload[C]", notifier: Notifier, leave: Callable[[], None], status: str
) -> AsyncIterator[None]:
    """Have each SIGHUP read the configuration again, one after the other.

    Args:
        reload: What to do.
        notifier: Told that it is being done, and when it is over.
        leave: Called instead if the signal says that the daemon's terminal is gone.
        status: What the service manager shows afterwards.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def work() -> None:
        while True:
            await asked.wait()
            asked.clear()
            notifier.reloading()
            good = await reload.run()
            kept = "; the configuration could not be read again, see the log"
            notifier.ready(status if good else status + kept)

    working = loop.create_task(work())
    try:
        with on_hangup(loop, asked.set, leave):
            yield
    finally:
        working.cancel()
        await asyncio.wait({working}, timeout=LEAVE_TIMEOUT)
