"""Small messages do not hold up whoever has them sent."""

import asyncio

import pytest

from flatship_protocol.errors import ConnectionLost
from flatship_sender import asides as module
from flatship_sender.asides import Asides


class Busy:
    """A connection that takes a message only when it is let."""

    def __init__(self):
        self.free = asyncio.Event()
        self.lost = False
        self.sent = []

    async def send(self, message):
        await self.free.wait()
        if self.lost:
            raise ConnectionLost("gone")
        self.sent.append(message)
        return len(message)


def test_a_busy_connection_is_not_waited_for_and_order_is_kept():
    async def scenario():
        connection = Busy()
        async with asyncio.TaskGroup() as tasks:
            asides = Asides(tasks)
            for message in (b"a", b"bc", b"d"):
                await asides.say(connection, message)
            assert not connection.sent
            connection.free.set()
        assert connection.sent == [b"a", b"bc", b"d"]
        assert asides.sent_bytes == 4

    asyncio.run(scenario())


def test_no_more_than_so_many_are_under_way(monkeypatch):
    monkeypatch.setattr(module, "MAX_ASIDES", 2)

    async def scenario():
        connection = Busy()
        async with asyncio.TaskGroup() as tasks:
            asides = Asides(tasks)
            await asides.say(connection, b"a")
            await asides.say(connection, b"b")
            third = asyncio.create_task(asides.say(connection, b"c"))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not third.done()
            connection.free.set()
            await third

    asyncio.run(scenario())


def test_a_connection_lost_under_one_is_told_and_one_that_is_stopped_is_not():
    async def scenario(*, stopped):
        connection = Busy()
        async with asyncio.TaskGroup() as tasks:
            asides = Asides(tasks)
            await asides.say(connection, b"a")
            await asyncio.sleep(0)
            connection.lost = True
            connection.free.set()
            if stopped:
                asides.stop()

    asyncio.run(scenario(stopped=True))
    with pytest.raises(ExceptionGroup, match="unhandled") as raised:
        asyncio.run(scenario(stopped=False))
    assert raised.group_contains(ConnectionLost)
