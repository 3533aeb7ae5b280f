"""A process of the simulation: tasks that can be ended as by ``kill -9``, at any step.

Whoever acts on the world outside, be it disk, journal or network, asks ``running()``
first. A node that is dead gets ``Killed`` instead, so its ``finally`` blocks, which a
real process would never run, change nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from virtual_loop import NumberedTask

_current: ContextVar["Node | None"] = ContextVar("node", default=None)

PATIENCE = 10_000  # turns of the loop that the tasks of a dead node get to end


class Killed(BaseException):
    """The process that did this is dead."""


class Node:
    """One life of one process.

    Args:
        name: For messages.
        on_death: Called at the moment of death, whatever brought it.
    """

    def __init__(self, name: str, on_death: Callable[[], None]) -> None:
        self.name = name
        self.alive = True
        self.ended = asyncio.Event()
        self._on_death = on_death
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a task, and all that it starts, as this process."""
        token = _current.set(self)
        try:
            return asyncio.get_running_loop().create_task(coroutine)
        finally:
            _current.reset(token)

    def die(self) -> None:
        """Be dead from now on. Idempotent."""
        if self.alive:
            self.alive = False
            self.ended.set()
            self._on_death()

    async def unwind(self) -> None:
        """Let the tasks of a dead node find out."""
        assert not self.alive
        for _ in range(PATIENCE):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        else:
            raise AssertionError(f"{self.name}: tasks of a dead process do not end: {left}")
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # else asyncio complains that nobody looked
        self._tasks.clear()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Count a task in."""
        self._tasks.add(task)


def running() -> Node | None:
    """The process that runs now; None is the world itself.

    Raises:
        Killed: It is dead.
    """
    node = _current.get()
    if node is not None and not node.alive:
        raise Killed(node.name)
    return node


def is_dead() -> bool:
    """Whether it is a dead process that asks."""
    node = _current.get()
    return node is not None and not node.alive


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Make a task of the process that asks for it."""
    task = NumberedTask(coroutine, loop=loop, **options)
    node = _current.get()
    if node is not None:
        node.adopt(task)
    return task
