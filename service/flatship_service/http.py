"""The HTTP endpoint of a daemon: metrics, health and what else it is given; read-only.

With TLS and logins, if wanted.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from flatship_service.errors import ConfigError
from flatship_service.http_access import Protection, exposure
from flatship_service.http_log import StrangersLog
from flatship_service.http_login import BUSY, CHALLENGE, Door, LoginRefused

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler, Middleware

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_HEADER: Final = 4096  # bytes of a request line, and of a header
MAX_BODY: Final = 1  # bytes; no request needs a body
KEEPALIVE: Final = 75.0  # seconds, longer than the usual interval between scrapes
# At once. Whoever holds one and asks nothing must not take the descriptors that transfers need.
MAX_CONNECTIONS: Final = 320
SHUTDOWN: Final = 1.0  # seconds given to answers that are under way

log = structlog.get_logger()


class Address(Protocol):
    """Where to listen; as text what an operator writes."""

    @property
    def host(self) -> str:
        """Name or address."""
        ...

    @property
    def port(self) -> int:
        """Of TCP."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A path, and who answers GET and HEAD there."""

    path: str
    answer: "Handler"


@dataclass(slots=True)
class HttpEndpoint:
    """Serves ``/metrics``, ``/healthz`` and ``routes`` to GET and HEAD, and nothing else.

    Args:
        render: Returns all metrics in Prometheus' text format.
        health: Returns whether the daemon does its work, and a line that says
            how; an unhealthy daemon answers 503.
        protection: What callers are held to, until ``protect``.
        refused: Told of each login that failed: the reason, and from which address.
        routes: What else is served.

    All are called on the event loop and must not block.
    """

    render: Callable[[], bytes]
    health: Callable[[], tuple[bool, str]]
    protection: Protection = field(default_factory=Protection)
    refused: Callable[[str, str], None] = lambda _reason, _address: None
    routes: Sequence[Route] = ()
    _runner: "web.AppRunner | None" = field(default=None, init=False)
    _listener: asyncio.Server | None = field(default=None, init=False)
    _answering: set[asyncio.Transport] = field(default_factory=set, init=False)
    _door: Door = field(default_factory=Door, init=False)

    @property
    def scheme(self) -> str:
        """What its addresses begin with."""
        return "http" if self.protection.tls is None else "https"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen, and return the address: with port 0 the kernel chooses one.

        Raises:
            OSError: The address is in use or not ours.
        """
        # Imported here: no command but serve should wait for aiohttp.
        from aiohttp import web  # noqa: PLC0415

        application = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard()])
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        for route in self.routes:
            application.router.add_get(route.path, route.answer)
        application.on_response_prepare.append(_name_server)
        self._runner = web.AppRunner(
            application,
            handle_signals=False,
            access_log=None,
            logger=StrangersLog(__name__),
            keepalive_timeout=KEEPALIVE,
            shutdown_timeout=SHUTDOWN,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._admit, host, port, backlog=16, ssl=self._tls()
            )
        except BaseException:
            await self.stop()
            raise
        address = self._listener.sockets[0].getsockname()
        return address[0], address[1]

    async def start_at(self, address: Address, exposed: Callable[[str], None]) -> tuple[str, int]:
        """As ``start``, where an operator wants it.

        Args:
            address: There.
            exposed: Told what strangers on the network can do with it, if there is anything.

        Raises:
            ConfigError: It cannot listen there.
        """
        if told := exposure(address.host, self.protection):
            exposed(told)
        try:
            return await self.start(address.host, address.port)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {address}: {error.strerror or error};"
                " choose another with --http"
            ) from error

    def protect(self, protection: Protection) -> None:
        """Hold callers to something else from the next connection and request on.

        Those who are being answered are hung up on, and have to ask again: an answer may be one
        without an end. One with TLS takes the place only of one with TLS.
        """
        if protection.users is not self.protection.users:
            for transport in self._answering:
                transport.close()
        self.protection = protection

    async def stop(self) -> None:
        """Close the listener and its connections. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _admit(self) -> asyncio.Protocol:
        """What speaks with the next caller."""
        server = None if self._runner is None else self._runner.server
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            return _Refusal()
        return server()

    def _tls(self) -> ssl.SSLContext | None:
        """A context that looks at ``protection`` anew at each handshake."""
        tls = self.protection.tls
        if tls is not None:
            tls.sni_callback = self._take_newest  # called also where no name is asked for
        return tls

    def _take_newest(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        if self.protection.tls is not None:
            connection.context = self.protection.tls

    def _guard(self) -> "Middleware":
        from aiohttp import web  # noqa: PLC0415

        @web.middleware
        async def guard(request: "web.Request", handler: "Handler") -> "web.StreamResponse":
            users = self.protection.users
            try:
                if users is not None:
                    await self._door.admit(users, request.headers.get("Authorization"))
            except LoginRefused as error:
                if error.reason is not None:
                    self.refused(error.reason, request.remote or "")
                if error.reason == BUSY:
                    return web.Response(status=429, headers={"Retry-After": "1"})
                return web.Response(status=401, headers={"WWW-Authenticate": CHALLENGE})
            if (transport := request.transport) is None:
                raise ConnectionResetError  # it has left
            self._answering.add(transport)
            try:
                return await handler(request)
            except (web.HTTPException, ConnectionError):
                raise
            except Exception:  # a fault of ours: a plain answer, and the trace is logged
                log.exception("a request failed", path=request.path)
                return web.Response(status=500, text="internal error; the daemon's log has more\n")
            finally:
                self._answering.discard(transport)

        return guard

    async def _metrics(self, _request: "web.Request") -> "web.Response":
        from aiohttp import web  # noqa: PLC0415

        return web.Response(body=self.render(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _healthz(self, _request: "web.Request") -> "web.Response":
        from aiohttp import web  # noqa: PLC0415

        healthy, detail = self.health()
        return web.Response(text=detail + "\n", status=200 if healthy else 503)


class _Refusal(asyncio.Protocol):
    """Hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        transport.close()


async def _name_server(_request: "web.Request", response: "web.StreamResponse") -> None:
    """Keep the versions of Python and aiohttp from strangers."""
    response.headers["Server"] = "flatship"
    response.headers["X-Content-Type-Options"] = "nosniff"
