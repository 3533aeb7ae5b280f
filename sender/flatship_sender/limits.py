"""Which limit holds now, out of all that there are; once a second it is worked out anew.

That of the site and that of the receiver come from the configuration and are shared with other
runs; the command's own tightens them. The wall clock says which period of a schedule holds, and
may jump: the rate follows within a second, and bytes are counted by another clock.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from math import inf
from typing import Final

from flatship_protocol.errors import TransferError
from flatship_sender.config import MIN_LIMIT, Config
from flatship_sender.progress import FINAL_STATES, TransferProgress
from flatship_sender.shares import Caution, Entry, Table, own_share
from flatship_sender.throttle import Throttle
from flatship_service.cli import tell
from flatship_service.errors import ConfigError
from flatship_service.signals import on_hangup
from flatship_service.units import format_rate
from flatship_service.workers import Workers

INTERVAL: Final = 1.0  # seconds between two looks at the clock and at the other runs
WORTH_A_CONNECTION: Final = 64 << 10  # bytes per second; a limit makes no thinner ones
APPETITE: Final = 1.5  # times what a run uses that it may want a moment later


class SharesNotNoted(TransferError):
    """A limit cannot be shared with other runs, for the state folder cannot be used."""


class Limiter:
    """Holds a throttle to the limits.

    Args:
        config: What the configuration says now.
        read: Reads it again.
        throttle: What is held to them.
        progress: Of the command; its receiver counts, its disks, and it is told the limit.
        table: This run among the others on this host.
        workers: Threads to look at the others in.
        command: The command's own limit, in bytes a second; infinite for none.
        a_disk: Likewise, of each of its disks.
        told: Told whether the configuration could be read again.
        now: The local time.
    """

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        throttle: Throttle,
        progress: TransferProgress,
        table: Table,
        workers: Workers,
        *,
        command: float = inf,
        a_disk: float = inf,
        told: Callable[[bool], None] = lambda _good: None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._config = config
        self._read = read
        self._throttle = throttle
        self._progress = progress
        self._table = table
        self._workers = workers
        self._command = command
        self._a_disk = a_disk
        self._told = told
        self._now = now
        self._caution = Caution(MIN_LIMIT)
        self._spent = throttle.spent
        self._shares = False  # whether other runs know of this one
        self._looking = asyncio.Lock()
        self.ceiling = inf
        """What this run could have if there were no others, in bytes a second."""

    @property
    def rate(self) -> float:
        """The limit in force, in bytes a second; infinite for none."""
        return inf if self._throttle.rate is None else self._throttle.rate

    async def look(self) -> None:
        """Work out what holds now, and hold to it.

        Raises:
            SharesNotNoted: It is to be shared, and the state folder cannot be used; the
                throttle is as it was.
        """
        async with self._looking:
            moment = self._now()
            site = self._config.limits.for_site(moment)
            receiver = self._config.limits.for_receiver(self._progress.receiver, moment)
            at_work = sum(disk.state not in FINAL_STATES for disk in self._progress.disks)
            own = min(self._command, self._a_disk * max(1, at_work))
            self.ceiling = rate = min(own, site, receiver)
            if min(site, receiver) < inf or self._shares:
                rate = min(rate, await self._share(rate, site, receiver))
            self._throttle.set_rate(None if rate == inf else rate)
            self._progress.limit = None if rate == inf else rate

    async def read_again(self) -> None:
        """Read the configuration; one that cannot be used changes nothing."""
        before = self._config
        try:
            self._config = self._read()
            await self.look()
        except (ConfigError, SharesNotNoted) as error:
            self._config = before
            tell(f"warning: the limits stay as they were: {error}")
            self._told(False)
            return
        self._told(True)
        now = "no limit" if self.rate == inf else format_rate(self.rate)
        tell(f"configuration read again: {now}")

    async def run(self) -> None:
        """Look once a second, until cancelled; what cannot be shared now is said once."""
        said = False
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.look()
            except SharesNotNoted as error:
                if not said:
                    tell(f"warning: the limits stay as they were: {error}")
                said = True

    async def _share(self, most: float, site: float, receiver: float) -> float:
        used, self._spent = self._throttle.spent - self._spent, self._throttle.spent
        hungry, self._throttle.waited = self._throttle.waited, False
        want = most if hungry else min(most, max(MIN_LIMIT, APPETITE * used / INTERVAL))
        mine = Entry(self._progress.receiver, _finite(want), _finite(most))
        try:
            others = await self._workers.run(self._exchange, mine)
        except OSError as error:
            raise SharesNotNoted(
                f"{error.filename or 'the state folder'} cannot be used to share a limit with"
                f" other runs: {error.strerror or error}; see to it that it can"
            ) from error
        self._shares = True
        share = own_share(mine, others, site=site, receiver=receiver, least=MIN_LIMIT)
        return self._caution.look(share, alone=not others)

    def _exchange(self, mine: Entry) -> list[Entry]:
        self._table.publish(mine)
        return self._table.others()


def _finite(rate: float) -> float | None:
    return None if rate == inf else float(rate)  # a Limit is no number that JSON knows


def worthwhile(connections: int, limit: float) -> int:
    """How many connections to use, of so many, for ``limit`` bytes per second in all."""
    if limit == inf:
        return connections
    return min(connections, max(1, int(limit // WORTH_A_CONNECTION)))


@asynccontextmanager
async def limits_kept(limiter: Limiter, stop: asyncio.Event) -> AsyncIterator[None]:
    """Have limits follow the clock and the other runs, and SIGHUP read them again."""
    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(limiter.run())}

    def read_again() -> None:
        task = loop.create_task(limiter.read_again())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with on_hangup(loop, read_again, stop.set):
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
