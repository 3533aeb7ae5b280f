"""Requests as they come and answers as they go: bounds, forms, and faults in our words."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import structlog
from aiohttp import web

from flatship_protocol.errors import TransferError
from flatship_sender.control.faults import Fault, FaultAnswer, Refused, malformed, refusal_of
from flatship_sender.control.listening import peer_of
from flatship_sender.control.operations import JSON, MAX_BODY, OPERATIONS, JobPath, JobsQuery
from flatship_service.errors import OperatorError

BODY_TIMEOUT: Final = 10.0  # seconds for a body that has begun to come

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

STRANGER_BODY: Final = msgspec.json.encode(
    FaultAnswer(
        error=Fault(
            code="not_authorised",
            message="only root, the daemon's user and the members of the socket's group may"
            " control it; become one of them",
            exit_code=12,
        )
    )
)
STRANGER: Final = (
    b"HTTP/1.1 403 Forbidden\r\nServer: flatship\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(STRANGER_BODY), STRANGER_BODY)


@web.middleware
async def in_our_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with a fault wherever a handler, or aiohttp, has raised something."""
    try:
        if (request.content_length or 0) > MAX_BODY:
            raise _too_large()  # before any of it is read
        return await handler(request)
    except Refused as refused:
        return _fault(refused)
    except (OperatorError, TransferError) as error:
        return _fault(refusal_of(error))
    except web.HTTPException as error:
        return _fault(*_of_http(request, error))
    except ConnectionError:
        raise
    except Exception:  # a fault of ours: who asked gets a plain answer, and the log the trace
        log.exception("a request failed", method=request.method, path=request.path)
        internal = "internal error, please report it; the daemon's log has more"
        return _fault(Refused(500, "internal", internal, 1))


def _of_http(request: web.Request, error: web.HTTPException) -> tuple[Refused, Mapping[str, str]]:
    """What aiohttp has to say of a request that reached no operation, and headers for it."""
    if error.status == 404:
        known = ", ".join(sorted({operation.path for operation in OPERATIONS}))
        return Refused(404, "not_found", f"no such path; there are {known}", 10), {}
    if error.status == 405:
        allowed = error.headers.get("Allow", "")
        message = f"{request.method} is not for this path; it takes {allowed}"
        return Refused(405, "method_not_allowed", message, 2), {"Allow": allowed}
    if error.status == 413:
        return _too_large(), {}
    return Refused(error.status, "malformed", error.reason, 2), {}


def _fault(refused: Refused, headers: Mapping[str, str] | None = None) -> web.Response:
    response = json_answer(FaultAnswer(error=refused.fault), status=refused.status)
    response.headers.update(headers or {})
    if refused.status == 413:
        response.force_close()  # what is left of the body is not read
    return response


def _too_large() -> Refused:
    return Refused(413, "too_large", f"a body has at most {MAX_BODY >> 10} KiB", 2)


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Ask for a body that waits to be asked for, if it is one to be read."""
    if (request.content_length or 0) > MAX_BODY:
        return _fault(_too_large())
    if request.headers.get("Expect", "").lower() != "100-continue":
        return _fault(malformed("Expect: only 100-continue is known"))
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


async def read_body(request: web.Request) -> bytes:
    """The body, within its bounds of form, size and time.

    Raises:
        Refused: It is not.
    """
    if request.content_type != JSON or "Content-Encoding" in request.headers:
        raise Refused(415, "unsupported_type", f"expected a plain body of type {JSON}", 2)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except TimeoutError:
        raise malformed(f"the body did not come within {BODY_TIMEOUT:.0f} s") from None


def decoded(body: bytes, kind: type[T]) -> T:
    """The body's contents.

    Raises:
        Refused: They are not of that kind (400), or do not fit together (422).
    """
    try:
        return msgspec.convert(_whole(msgspec.json.decode(body)), kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ValueError):  # of the type's own judgement on the whole
            raise Refused(422, "unusable", str(error), 2) from None
        raise malformed(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(f"not JSON: {error}") from None


def _whole(value: Any) -> Any:
    """The value with 3 in the place of 3.0: to JSON, and to the description, they are the same."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def query_of(request: web.Request) -> JobsQuery:
    """The query for jobs.

    Raises:
        Refused: It has something else in it.
    """
    given: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        if name == "state":
            given[name] = values
        elif len(values) > 1:
            raise malformed(f"{name} is given {len(values)} times")
        else:
            given[name] = values[0]
    try:
        return msgspec.convert(given, JobsQuery, strict=False)
    except msgspec.ValidationError as error:
        raise malformed(str(error)) from None


def no_query(request: web.Request) -> None:
    """Refuse a query where none is expected, for it may be a slip."""
    if request.query_string:
        raise malformed("expected no query")


def number_of(request: web.Request) -> int:
    """The job's number in the path.

    Raises:
        Refused: It is none.
    """
    try:
        return msgspec.convert(dict(request.match_info), JobPath, strict=False).id
    except msgspec.ValidationError:
        raise Refused(
            404, "not_found", f"there is no job {request.match_info['id'][:40]!r}", 10
        ) from None


def uid_of(request: web.Request) -> int:
    """Who asks."""
    assert request.transport is not None
    return peer_of(request.transport.get_extra_info("socket")).uid


def json_answer(answer: msgspec.Struct, status: int = 200) -> web.Response:
    """An answer of one object."""
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=JSON)


async def name_server(_request: web.Request, response: web.StreamResponse) -> None:
    """Keep the versions of Python and aiohttp to ourselves."""
    response.headers["Server"] = "flatship"
