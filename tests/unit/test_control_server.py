import asyncio
import json
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_queue import FakeQueue, job

from flatship_protocol.endpoint import Endpoint
from flatship_sender.control import server as server_module
from flatship_sender.control.answers import MAX_JOBS
from flatship_sender.control.listening import MAX_CONNECTIONS, Peer, SocketTaken, leave, listen
from flatship_sender.control.operations import MAX_BODY, OPERATIONS
from flatship_sender.control.server import ControlServer
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.queue.model import JobState
from flatship_sender.receivers import Receiver, Receivers
from flatship_sender.snapshot import Snapshot, take
from flatship_service.errors import ConfigError

MIB = 1 << 20


def snapshot() -> Snapshot:
    return take(TransferProgress("esx", "web01", [DiskProgress("s", "t", MIB)]), 5.0)


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        self.head = head.decode()
        self.status = int(self.head.split()[1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


class Place:
    """A server at a socket, and its state folder, which knows the receiver esx."""

    def __init__(self, folder: Path) -> None:
        self.queue = FakeQueue()
        self.state = folder / "state"
        self.socket = folder / "c"
        self.source = folder / "disk"
        self.source.write_bytes(b"x")
        Receivers(self.state).save(Receiver("esx", Endpoint("localhost", 1), bytes(32)))

    def submission(self, **other: Any) -> dict[str, Any]:
        return {
            "spec": {"sources": [str(self.source)], "receiver": "esx", "vm": "web01"},
            **other,
        }

    async def ask(self, method: str, path: str, body: Any = None, extra: str = "") -> Answer:
        head = f"{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{extra}"
        content = b""
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return Answer(await self.say(head.encode() + b"\r\n" + content))

    async def say(self, raw: bytes) -> bytes:
        """All that is answered until the connection ends."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), timeout=10)
        writer.close()
        return answer


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Place]:
    place = Place(folder)
    async with ControlServer(place.queue, place.state, "1", **options).serve(place.socket):
        yield place


def played(folder: Path, play: Callable[[Place], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with serving(folder, **options) as place:
            await play(place)

    asyncio.run(run())


def test_a_job_is_submitted_listed_and_shown(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        submitted = await place.ask("POST", "/v1/jobs", place.submission(priority=3, key="a"))
        assert submitted.status == 201
        assert submitted.json["priority"] == 3
        assert submitted.json["by_uid"] == os.getuid()
        listed = await place.ask("GET", "/v1/jobs")
        assert [each["id"] for each in listed.json["jobs"]] == [1]
        assert listed.json["next"] is None
        shown = await place.ask("GET", "/v1/jobs/1")
        assert shown.json["job"] == submitted.json
        assert shown.json["waits_for"] == "its turn, which comes at once"

    played(tmp_path, play)


def test_the_same_key_and_contents_are_the_same_job_and_other_contents_a_conflict(
    tmp_path: Path,
) -> None:
    async def play(place: Place) -> None:
        first = await place.ask("POST", "/v1/jobs", place.submission(key="a"))
        again = await place.ask("POST", "/v1/jobs", place.submission(key="a"))
        assert (first.status, again.status) == (201, 200)
        assert first.json == again.json
        other = place.submission(key="a")
        other["spec"]["vm"] = "web02"
        refused = await place.ask("POST", "/v1/jobs", other)
        assert refused.status == 409
        assert (refused.error["code"], refused.error["exit_code"]) == ("conflict", 11)
        assert len(place.queue.all) == 1

    played(tmp_path, play)


def test_a_job_is_known_by_its_key_also_when_its_source_and_receiver_are_no_more(
    tmp_path: Path,
) -> None:
    async def play(place: Place) -> None:
        first = await place.ask("POST", "/v1/jobs", place.submission(key="a"))
        place.queue.becomes(1, JobState.DONE, exit_code=0)
        place.source.unlink()
        shutil.rmtree(place.state)
        again = await place.ask("POST", "/v1/jobs", place.submission(key="a"))
        assert (first.status, again.status, again.json["state"]) == (201, 200, "done")

    played(tmp_path, play)


def test_jobs_are_listed_by_state_and_page_by_page(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        for number in range(1, 6):
            place.queue.all[number] = job(number)
        place.queue.becomes(2, JobState.DONE)
        first = (await place.ask("GET", "/v1/jobs?limit=2&state=queued&state=paused")).json
        assert [each["id"] for each in first["jobs"]] == [1, 3]
        assert first["next"] == 3
        rest = (await place.ask("GET", "/v1/jobs?limit=9&state=queued&after=3")).json
        assert [each["id"] for each in rest["jobs"]] == [4, 5]
        assert rest["next"] is None

    played(tmp_path, play)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        f"limit={MAX_JOBS + 1}",
        "limit=x",
        "after=-1",
        "after=1&after=2",
        "state=gone",
        "states=queued",
        f"after={1 << 63}",
    ],
)
def test_a_query_that_means_nothing_is_refused(tmp_path: Path, query: str) -> None:
    async def play(place: Place) -> None:
        answer = await place.ask("GET", f"/v1/jobs?{query}")
        assert (answer.status, answer.error["code"]) == (400, "malformed")

    played(tmp_path, play)


def test_jobs_are_paused_resumed_and_cancelled(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        for how, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            assert (await place.ask("POST", f"/v1/jobs/1/{how}")).json["state"] == state
        refused = await place.ask("POST", "/v1/jobs/1/pause")
        assert (refused.status, refused.error["exit_code"]) == (409, 11)
        assert "it has ended" in refused.error["message"]

    played(tmp_path, play)


def test_the_status_counts_jobs_and_says_whether_the_daemon_is_about_to_leave(
    tmp_path: Path,
) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        status = (await place.ask("GET", "/v1/status")).json
        assert status["jobs"]["queued"] == {"jobs": 1, "bytes": 0}
        assert (status["draining"], status["places"], status["version"]) == (False, 2, "1")
        assert (await place.ask("POST", "/v1/drain")).json["draining"] is True
        assert place.queue.draining

    played(tmp_path, play)


@pytest.mark.parametrize("path", ["/v1/jobs/9", "/v1/jobs/0", "/v1/jobs/x", f"/v1/jobs/{1 << 63}"])
def test_a_job_that_is_not_there_is_not_found(tmp_path: Path, path: str) -> None:
    async def play(place: Place) -> None:
        for method, end in (("GET", ""), ("GET", "/changes"), ("POST", "/cancel")):
            answer = await place.ask(method, path + end)
            assert (answer.status, answer.error["exit_code"]) == (404, 10)

    played(tmp_path, play)


def test_what_is_no_operation_is_refused_in_the_same_form(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        nowhere = await place.ask("GET", "/v2/jobs")
        assert nowhere.status == 404
        assert "/v1/jobs/{id}/changes" in nowhere.error["message"]
        wrong = await place.ask("DELETE", "/v1/jobs")
        assert wrong.status == 405
        assert "\r\nAllow: GET,POST" in wrong.head

    played(tmp_path, play)


def test_a_source_that_is_not_there_is_refused_unless_it_may_appear(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.source.unlink()
        refused = await place.ask("POST", "/v1/jobs", place.submission())
        assert (refused.status, refused.error["exit_code"]) == (404, 10)
        assert str(place.source) in refused.error["message"]
        later = await place.ask("POST", "/v1/jobs", place.submission(not_before=2e9))
        assert later.status == 201

    played(tmp_path, play)


def test_a_receiver_that_nobody_has_paired_with_is_refused(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        submission = place.submission()
        submission["spec"]["receiver"] = "other"
        refused = await place.ask("POST", "/v1/jobs", submission)
        assert (refused.status, refused.error["exit_code"]) == (404, 10)
        assert "known: esx" in refused.error["message"]

    played(tmp_path, play)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"{}", 400),
        (b"null", 400),
        (b'{"spec":{"sources":["disk"],"receiver":"esx","vm":"a"}}', 400),
        (b'{"spec":{"sources":["/d"],"receiver":"esx","vm":"a","other":1}}', 400),
        (b'{"spec":{"sources":["/d","/./d"],"receiver":"esx","vm":"a"}}', 422),
        (b'{"spec":{"sources":["/d"],"receiver":"esx","vm":"a/b"}}', 422),
        (b'{"spec":{"sources":["/d\\u0000"],"receiver":"esx","vm":"a"}}', 422),
        (b'{"spec":{"sources":["/d"],"receiver":"esx","vm":"a","until_downtime":5}}', 422),
    ],
)
def test_a_submission_that_is_none_is_refused(tmp_path: Path, body: bytes, status: int) -> None:
    async def play(place: Place) -> None:
        answer = await place.ask("POST", "/v1/jobs", body)
        assert (answer.status, answer.error["exit_code"]) == (status, 2)
        assert place.queue.all == {}

    played(tmp_path, play)


@pytest.mark.parametrize("extra", ["Content-Type: text/plain\r\n", "Content-Encoding: gzip\r\n"])
def test_a_body_in_another_form_is_refused(tmp_path: Path, extra: str) -> None:
    async def play(place: Place) -> None:
        body = json.dumps(place.submission()).encode()
        raw = f"POST /v1/jobs HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{extra}"
        raw += f"Content-Length: {len(body)}\r\n\r\n"
        answer = Answer(await place.say(raw.encode() + body))
        assert answer.status == 415

    played(tmp_path, play)


@pytest.mark.parametrize("extra", ["", "Expect: 100-continue\r\n"])
def test_a_body_that_is_too_large_is_refused_by_its_announcement(
    tmp_path: Path, extra: str
) -> None:
    async def play(place: Place) -> None:
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {100 * MIB}\r\n\r\n"
        )
        answer = Answer(await place.say(head.encode()))
        assert (answer.status, answer.error["code"]) == (413, "too_large")

    played(tmp_path, play)


def test_a_body_that_was_not_announced_is_read_up_to_the_bound(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        head = (
            b"POST /v1/jobs HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = Answer(await place.say(head + chunk * (MAX_BODY // 0x10000 + 2)))
        assert answer.status == 413

    played(tmp_path, play)


@pytest.mark.parametrize(
    "raw",
    [
        bytes(range(256)) * 40,
        b"GET /v1/status HTTP/1.1\r\nHost: d\r\n"
        + b"".join(b"X%d: y\r\n" % n for n in range(5000)),
        b"GET /v1/status HTTP/1.1\r\nHost: d\r\nX: " + b"y" * 100_000,
        b"GET /" + b"y" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    ],
    ids=["garbage", "many headers", "long header", "long path", "TLS"],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(tmp_path: Path, raw: bytes) -> None:
    async def play(place: Place) -> None:
        assert Answer(await place.say(raw)).status == 400
        assert (await place.ask("GET", "/v1/status")).status == 200

    played(tmp_path, play)


def test_a_follower_is_told_of_each_change_to_the_end(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        reader, writer = await asyncio.open_unix_connection(place.socket)
        writer.write(b"GET /v1/jobs/1/changes HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert json.loads(await reader.readline())["job"]["state"] == "queued"
        place.queue.becomes(1, JobState.RUNNING)
        assert json.loads(await reader.readline())["job"]["state"] == "running"
        place.queue.progresses(1, snapshot())
        assert json.loads(await reader.readline())["snapshot"]["vm"] == "web01"
        place.queue.becomes(1, JobState.DONE, exit_code=0)
        assert json.loads(await reader.readline())["job"]["state"] == "done"
        assert await reader.read() == b""
        writer.close()

    played(tmp_path, play)


def test_a_follower_hears_of_the_daemon_where_nothing_changes(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        reader, writer = await asyncio.open_unix_connection(place.socket)
        writer.write(b"GET /v1/jobs/1/changes HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
        assert await reader.readline() == b"{}\n"
        writer.close()

    played(tmp_path, play, heartbeat=0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what others do is looked at from outside
            await asyncio.sleep(0.01)


def test_a_follower_that_never_reads_is_dropped_and_holds_up_nobody(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1, JobState.RUNNING, message="m" * 50_000)
        _, writer = await asyncio.open_unix_connection(place.socket, limit=1)
        writer.write(b"GET /v1/jobs/1/changes HTTP/1.0\r\n\r\n")
        await until(lambda: place.queue.followers == 1)
        async with asyncio.timeout(10):
            while place.queue.followers:
                place.queue.becomes(1, JobState.RUNNING)
                assert (await place.ask("GET", "/v1/status")).status == 200
        writer.close()

    played(tmp_path, play, answer_timeout=0.2)


def test_a_follower_that_leaves_is_forgotten_at_the_next_line(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        reader, writer = await asyncio.open_unix_connection(place.socket)
        writer.write(b"GET /v1/jobs/1/changes HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await until(lambda: place.queue.followers == 0)

    played(tmp_path, play, heartbeat=0.01)


def test_more_followers_than_there_is_room_for_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        _, writer = await asyncio.open_unix_connection(place.socket)
        writer.write(b"GET /v1/jobs/1/changes HTTP/1.0\r\n\r\n")
        await until(lambda: place.queue.followers == 1)
        refused = await place.ask("GET", "/v1/jobs/1/changes")
        assert (refused.status, refused.error["exit_code"]) == (503, 5)
        writer.close()

    monkeypatch.setattr(server_module, "MAX_FOLLOWERS", 1)
    played(tmp_path, play)


def test_connections_beyond_the_bound_wait_for_a_place(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        silent = [await asyncio.open_unix_connection(place.socket) for _ in range(MAX_CONNECTIONS)]
        asking = asyncio.create_task(place.ask("GET", "/v1/status"))
        done, _ = await asyncio.wait({asking}, timeout=0.3)
        assert not done
        silent[0][1].close()
        assert (await asking).status == 200
        for _, writer in silent:
            writer.close()

    played(tmp_path, play)


@pytest.mark.parametrize(
    ("peer", "heard"),
    [
        (Peer(0, frozenset({0})), True),
        (Peer(1000, frozenset({1000})), True),
        (Peer(1001, frozenset({1001, 27})), True),
        (Peer(1001, frozenset({27})), True),
        (Peer(1001, frozenset({1001})), False),
        (Peer(1001, frozenset()), False),
    ],
)
def test_root_the_own_user_and_the_sockets_group_are_heard_and_nobody_else(
    peer: Peer, heard: bool
) -> None:
    assert peer.may_control(own_uid=1000, group=27) is heard


def test_a_stranger_is_told_that_it_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stranger(_connection: socket.socket) -> Peer:
        return Peer(54321, frozenset({54321}))

    async def play(place: Place) -> None:
        answer = await place.ask("GET", "/v1/status")
        assert (answer.status, answer.error["exit_code"]) == (403, 12)

    monkeypatch.setattr("flatship_sender.control.listening.peer_of", stranger)
    monkeypatch.setattr("os.geteuid", lambda: 4)
    played(tmp_path, play)


def test_the_socket_is_for_its_owner_and_its_group(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        assert stat.S_IMODE(place.socket.stat().st_mode) == 0o660

    played(tmp_path, play)
    assert not (tmp_path / "c").exists()


def test_a_socket_that_a_crash_left_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c"
    listen(path).close()
    assert path.exists()
    second = listen(path)
    with pytest.raises(SocketTaken, match="another daemon answers"):
        listen(path)
    leave(second, path)
    assert not path.exists()


def test_leaving_does_not_take_the_socket_of_another_daemon_along(tmp_path: Path) -> None:
    path = tmp_path / "c"
    first = listen(path)
    path.unlink()
    second = listen(path)
    leave(first, path)
    assert path.exists()
    leave(second, path)


@pytest.mark.parametrize("name", ["x" * 120, "none/c"])
def test_a_place_where_no_socket_can_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="choose another with --socket"):
        listen(tmp_path / name)


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="something else stands there"):
        listen(path)
    assert path.read_text() == "mine"


def test_each_operation_is_answered(tmp_path: Path) -> None:
    async def play(place: Place) -> None:
        place.queue.all[1] = job(1)
        for operation in OPERATIONS:
            path = operation.path.replace("{id}", "99")
            answer = await place.ask(operation.method, path)
            assert answer.status != 500, operation.name
            assert answer.status in {*operation.answers, *operation.faults, 400}, operation.name

    played(tmp_path, play)
