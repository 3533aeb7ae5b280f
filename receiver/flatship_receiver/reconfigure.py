"""What of a receiver's configuration can change while it runs, and how.

Sessions go on: nothing that they use is taken away. Datastores come, and none goes.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flatship_protocol.errors import TransferError
from flatship_receiver.config import Config
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.facilities import Store
from flatship_service import logs
from flatship_service.congestion import system_congestion_control, use_congestion_control
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint
from flatship_service.http_access import protection, succeeding

FIXED: Final = ("listen", "http", "state", "prove")


@dataclass(slots=True)
class Running:
    """A receiver's parts that a configuration changes.

    Args:
        stores: Datastores by name; the first is the default. Sessions look into this very dict.
        paths: Where they are.
        sock: Where senders connect.
        endpoint: Where metrics are served.
        open: Opens a further datastore and makes it ready.
        adopt: Gives it threads and metrics, to be used from then on.
    """

    stores: dict[str, Store]
    paths: dict[str, Path]
    sock: socket.socket
    endpoint: HttpEndpoint
    open: Callable[[str, Path], Awaitable[Datastore]]
    adopt: Callable[[Datastore], Store]

    async def apply(self, new: Config) -> Sequence[str]:
        """Take on what a new configuration says; returns keys that wait for a restart.

        Raises:
            ConfigError: Something that it asks for cannot be had. All is as it was.
        """
        if not new.datastores:
            raise ConfigError("no datastore is configured; what runs has some, and keeps them")
        offered = await asyncio.to_thread(protection, new.http_access)
        held_to, waiting = succeeding(self.endpoint.protection, offered)
        fresh: dict[str, Datastore] = {}
        try:
            for name, path in new.datastores.items():
                if name not in self.stores:
                    fresh[name] = await self._opened(name, path)
            _set_congestion_control(self.sock, new.congestion_control)
        except BaseException:
            for datastore in fresh.values():
                datastore.close()  # else its mount is in use for ever, and once more at each try
            raise
        # From here on nothing fails, and nothing else runs in between.
        logs.set_level(new.log_level)
        self.endpoint.protect(held_to)
        stores = {**self.stores, **{name: self.adopt(each) for name, each in fresh.items()}}
        self.paths.update({name: new.datastores[name] for name in fresh})
        gone = [name for name in stores if name not in new.datastores]
        self.stores.clear()
        self.stores.update({name: stores[name] for name in (*new.datastores, *gone)})
        moved = [name for name, path in new.datastores.items() if path != self.paths[name]]
        return [*waiting, *(f"datastore.{name}" for name in (*gone, *moved))]

    async def _opened(self, name: str, path: Path) -> Datastore:
        try:
            return await self.open(name, path)
        except TransferError as error:
            raise ConfigError(f"datastore.{name}: {error}") from error
        except TimeoutError as error:
            raise ConfigError(f"datastore.{name}: {path} does not answer") from error


def _set_congestion_control(sock: socket.socket, name: str | None) -> None:
    try:
        use_congestion_control(sock, name or system_congestion_control())
    except ValueError as error:
        raise ConfigError(f"congestion_control: {error}") from None
