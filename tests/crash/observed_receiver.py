"""flatship-receiver, and a note of each promise before it is given.

    python -m crash.observed_receiver serve ...

Runs the receiver as it is. Before STORED and DISK_PROVEN leave it, how far the device's log
had come goes into ``CRASH_EVENTS``: what is promised there must be durable by then, whether
or not the sender ever heard of it.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from crash.events import Noting, Proven, Stored
from flatship_protocol.messages import DiskProven, Message
from flatship_protocol.messages import Stored as StoredMessage
from flatship_receiver import session as sessions_room
from flatship_receiver.cli import main
from flatship_receiver.pipeline import DiskIntake


def observe(noting: Noting) -> None:
    """Have each disk's messages noted before they are sent."""

    def observed(*arguments: Any, **options: Any) -> DiskIntake:
        opening, peer, store, session, send, facilities = arguments
        noted = _noted(send, noting)
        return DiskIntake(opening, peer, store, session, noted, facilities, **options)

    assert DiskIntake.__name__ in vars(sessions_room)
    vars(sessions_room)[DiskIntake.__name__] = observed


def _noted(
    send: Callable[[Message], Awaitable[None]], noting: Noting
) -> Callable[[Message], Awaitable[None]]:
    async def note_and_send(message: Message) -> None:
        if isinstance(message, StoredMessage):
            noting.note(Stored(noting.position(), message.ranges))
        elif isinstance(message, DiskProven):
            noting.note(Proven(noting.position(), published=message.published))
        await send(message)

    return note_and_send


if __name__ == "__main__":
    observe(Noting(os.environ["CRASH_LOG"], os.environ["CRASH_EVENTS"]))
    main()
