"""The daemon's control interface: what answers at the Unix socket.

Everything a peer sends is bounded before it is read, and nobody who asks holds up the queue:
a follower that does not read is dropped.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from flatship_sender.control import openapi
from flatship_sender.control.answers import MAX_JOBS, Amount, Change, JobList, JobView, Status
from flatship_sender.control.exchange import (
    STRANGER,
    decoded,
    expect,
    in_our_words,
    json_answer,
    name_server,
    no_query,
    number_of,
    query_of,
    read_body,
    uid_of,
)
from flatship_sender.control.faults import Refused
from flatship_sender.control.listening import admit, leave, listen
from flatship_sender.control.operations import JSON, LINES, MAX_BODY, OPERATIONS
from flatship_sender.control.served import Queue
from flatship_sender.control.sources import Sources
from flatship_sender.control.waiting import waits_for
from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.receivers import Receivers
from flatship_service.http_log import StrangersLog

MAX_HEADER: Final = 8192  # bytes of a request line, and of a header
MAX_HEADERS: Final = 64
MAX_FOLLOWERS: Final = 64
IDLE_TIMEOUT: Final = 30.0  # seconds without a request, or with a part of one
ANSWER_TIMEOUT: Final = 20.0  # seconds in which a follower has to take what it is sent
HEARTBEAT: Final = 10.0  # seconds; a line at least so often
SHUTDOWN: Final = 1.0  # seconds given to answers that are under way


class ControlServer:
    """Answers the operations; each method of theirs is named for one.

    Args:
        queue: Whose jobs they are.
        state: The state folder, for the receivers that are known.
        version: The daemon's.
        heartbeat: Seconds between two lines to a follower, at most.
        answer_timeout: Seconds after which a follower that takes nothing is dropped.
    """

    def __init__(
        self,
        queue: Queue,
        state: Path,
        version: str,
        *,
        heartbeat: float = HEARTBEAT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._queue = queue
        self._receivers = Receivers(state)
        self._version = version
        self._heartbeat = heartbeat
        self._answer_timeout = answer_timeout
        self._sources = Sources()
        self._description = openapi.render()
        self._followers = 0

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        """Answer at ``path`` while the body runs.

        Raises:
            SocketTaken, ConfigError: As for ``listen``.
        """
        listener = listen(path)
        application = web.Application(client_max_size=MAX_BODY, middlewares=[in_our_words])
        for operation in OPERATIONS:
            application.router.add_route(
                operation.method,
                operation.path,
                getattr(self, f"_{operation.name}"),
                expect_handler=expect,
            )
        application.on_response_prepare.append(name_server)
        runner = web.AppRunner(
            application,
            handle_signals=False,
            access_log=None,
            logger=StrangersLog(__name__),
            keepalive_timeout=IDLE_TIMEOUT,
            shutdown_timeout=SHUTDOWN,
            lingering_time=0,
            auto_decompress=False,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            max_headers=MAX_HEADERS,
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        admitting = asyncio.create_task(
            admit(listener, path, server, lambda: len(server.connections), STRANGER)
        )
        try:
            yield
        finally:
            admitting.cancel()
            await asyncio.wait({admitting})
            leave(listener, path)
            await runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        no_query(request)
        return json_answer(self._stand())

    async def _jobs(self, request: web.Request) -> web.Response:
        query = query_of(request)
        jobs = await self._queue.jobs(query.state or None, query.after, query.limit)
        following = jobs[-1].id if len(jobs) == query.limit else None
        return json_answer(JobList(jobs=jobs, next=following))

    async def _submit(self, request: web.Request) -> web.Response:
        no_query(request)
        submission = decoded(await read_body(request), Submission)
        # Not later: who asks again may do so when the job is done, and its source is no more.
        known = await self._queue.known(submission)
        if known is not None:
            return json_answer(known)
        self._receivers.load(submission.spec.receiver)
        if submission.not_before is None:
            await self._sources.check(submission.spec.sources)
        job, new = await self._queue.submit(submission, uid_of(request))
        return json_answer(job, status=201 if new else 200)

    async def _job(self, request: web.Request) -> web.Response:
        no_query(request)
        job = await self._queue.job(number_of(request))
        return json_answer(
            JobView(
                job=job,
                waits_for=waits_for(
                    job,
                    await self._queue.jobs([JobState.RUNNING], 0, MAX_JOBS),
                    places=self._queue.places,
                    draining=self._queue.draining,
                    now=time.time(),
                ),
                snapshot=self._queue.snapshot(job.id),
            )
        )

    async def _pause(self, request: web.Request) -> web.Response:
        no_query(request)
        return json_answer(await self._queue.pause(number_of(request)))

    async def _resume(self, request: web.Request) -> web.Response:
        no_query(request)
        return json_answer(await self._queue.resume(number_of(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        no_query(request)
        return json_answer(await self._queue.cancel(number_of(request)))

    async def _drain(self, request: web.Request) -> web.Response:
        no_query(request)
        self._queue.drain()
        return json_answer(self._stand())

    async def _openapi(self, request: web.Request) -> web.Response:
        no_query(request)
        return web.Response(body=self._description, content_type=JSON)

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        no_query(request)
        number = number_of(request)
        await self._queue.job(number)  # there is one, or this raises
        if self._followers >= MAX_FOLLOWERS:
            raise Refused(
                503, "try_again", f"{MAX_FOLLOWERS} follow jobs already; end one of them", 5
            )
        response = web.StreamResponse(headers={"Content-Type": LINES})
        self._followers += 1
        try:
            await response.prepare(request)
            async with aclosing(self._lines(number)) as lines:
                async for line in lines:
                    async with asyncio.timeout(self._answer_timeout):
                        await response.write(msgspec.json.encode(line) + b"\n")
            await response.write_eof()
        except (TimeoutError, ConnectionError):
            # It does not read, or is gone. What is left of the answer is not worth keeping.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._followers -= 1
        return response

    async def _lines(self, number: int) -> AsyncGenerator[Change, None]:
        """Changes of a job until it has ended, and a sign of life where nothing changes."""
        async with aclosing(self._queue.changes(number)) as changes:
            while True:
                coming = asyncio.ensure_future(anext(changes, None))
                try:
                    while not (await asyncio.wait({coming}, timeout=self._heartbeat))[0]:
                        yield Change()
                finally:
                    coming.cancel()  # unless it has come
                    await asyncio.wait({coming})
                change = coming.result()
                if change is None:
                    return
                yield Change(job=change) if isinstance(change, Job) else Change(snapshot=change)

    def _stand(self) -> Status:
        counts = self._queue.counts()
        return Status(
            version=self._version,
            pid=os.getpid(),
            draining=self._queue.draining,
            places=self._queue.places,
            jobs={state: Amount(jobs=n, bytes=size) for state, (n, size) in counts.items()},
        )
