"""Whether a request may be answered: names and passwords as RFC 7617 has them ("Basic")."""

import asyncio
import base64
from typing import Final

from flatship_service.passwords import MAX_PASSWORD, Users

CHALLENGE: Final = 'Basic realm="flatship", charset="UTF-8"'
MAX_WAITING: Final = 8  # guesses that may wait for their turn
PASSWORD: Final = "password"  # noqa: S105  # reasons, labels of metrics
BUSY: Final = "login_busy"
REASONS: Final = (PASSWORD, BUSY)


class LoginRefused(Exception):
    """A request is not to be answered.

    Args:
        reason: One of REASONS; None if it says nothing of who asks, which is no failure.
    """

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Door:
    """Lets requests in.

    Guesses are judged one at a time, off the event loop: each takes memory and a processor.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def admit(self, users: Users, authorization: str | None) -> None:
        """Return if a request is one of a user's.

        Args:
            users: Who may come in.
            authorization: The header of that name, if there is one.

        Raises:
            LoginRefused: It is not, or too many are being judged.
        """
        if authorization is None:
            raise LoginRefused(None)
        name, password = credentials(authorization)
        if users.is_known(name, password):
            return
        if self._waiting >= MAX_WAITING:
            raise LoginRefused(BUSY)
        self._waiting += 1
        try:
            async with self._turn:
                right = await asyncio.to_thread(users.check, name, password)
        finally:
            self._waiting -= 1
        if not right:
            raise LoginRefused(PASSWORD)


def credentials(authorization: str) -> tuple[str, bytes]:
    """Name and password of an Authorization header.

    Raises:
        LoginRefused: There are none in it.
    """
    scheme, _, encoded = authorization.partition(" ")
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        known_as = name.decode("utf-8")
    except ValueError:  # binascii.Error and UnicodeDecodeError are such
        raise LoginRefused(PASSWORD) from None
    if scheme.lower() != "basic" or not colon or len(password) > MAX_PASSWORD:
        raise LoginRefused(PASSWORD)
    return known_as, password
