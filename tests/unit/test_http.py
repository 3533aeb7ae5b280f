import asyncio
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from flatship_protocol.endpoint import Endpoint
from flatship_service import http
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint


async def answer_to(endpoint: HttpEndpoint, request: bytes) -> bytes:
    host, port = await endpoint.start()
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), timeout=10)
        writer.close()
        await writer.wait_closed()
    finally:
        await endpoint.stop()
    return answer


def ask(
    method: str,
    path: str,
    *,
    healthy: tuple[bool, str] = (True, "serving"),
    extra: str = "",
) -> tuple[int, str, str]:
    """Status, headers and body of the answer."""
    endpoint = HttpEndpoint(render=lambda: b"up 1\n", health=lambda: healthy)
    request = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{extra}\r\n"
    head, _, body = (
        asyncio.run(answer_to(endpoint, request.encode())).decode().partition("\r\n\r\n")
    )
    return int(head.split()[1]), head, body


def test_metrics_are_served_in_the_text_format_of_prometheus() -> None:
    status, head, body = ask("GET", "/metrics")

    assert (status, body) == (200, "up 1\n")
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head


def test_head_answers_without_a_body() -> None:
    status, _, body = ask("HEAD", "/metrics")

    assert (status, body) == (200, "")


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_health_says_whether_and_how(healthy: bool, status: int) -> None:
    assert ask("GET", "/healthz", healthy=(healthy, "detail"))[::2] == (status, "detail\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/../etc/passwd", "/favicon.ico"])
def test_request_to_elsewhere_is_not_found(path: str) -> None:
    assert ask("GET", path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_reading_is_allowed(method: str) -> None:
    assert ask(method, "/metrics")[0] == 405


def test_oversized_header_is_refused() -> None:
    assert ask("GET", "/metrics", extra=f"X: {'a' * 5000}\r\n")[0] == 400


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01", b"GET", b"GET / HTTP/1.1\r\nX: " + b"a" * 5000]
)
def test_a_stranger_who_speaks_no_http_leaves_no_stack_trace(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
    answer = asyncio.run(answer_to(endpoint, garbage + b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert caplog.records == []


def test_a_defect_of_ours_is_logged_and_not_told() -> None:
    def render() -> bytes:
        raise ZeroDivisionError("a defect")

    endpoint = HttpEndpoint(render=render, health=lambda: (True, ""))
    request = b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    with capture_logs() as logged:
        answer = asyncio.run(answer_to(endpoint, request))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"defect" not in answer
    assert [(line["event"], line["path"]) for line in logged] == [("a request failed", "/metrics")]


def test_answer_does_not_name_versions() -> None:
    head = ask("GET", "/metrics")[1]

    assert "Server: flatship" in head
    assert "ython" not in head
    assert "aiohttp" not in head


def test_listens_on_loopback_unless_told_otherwise() -> None:
    async def address() -> tuple[str, int]:
        endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
        try:
            return await endpoint.start()
        finally:
            await endpoint.stop()

    host, port = asyncio.run(address())
    assert host == "127.0.0.1"
    assert port > 0


def test_address_in_use_is_reported_and_leaves_nothing_open() -> None:
    async def collide() -> None:
        first = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
        second = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
        host, port = await first.start()
        with pytest.raises(OSError, match="in use"):
            await second.start(host, port)
        await first.stop()
        await second.start(host, port)
        await second.stop()

    asyncio.run(collide())


def test_an_operator_is_told_of_strangers_and_of_an_address_that_cannot_be_had() -> None:
    async def scenario() -> None:
        told: list[str] = []
        first, second = (HttpEndpoint(lambda: b"", lambda: (True, "")) for _ in range(2))
        _, port = await first.start_at(Endpoint("127.0.0.1", 0), told.append)
        assert told == []
        with pytest.raises(
            ConfigError, match=rf"on 0\.0\.0\.0:{port}: .*; choose another with --http"
        ):
            await second.start_at(Endpoint("0.0.0.0", port), told.append)
        assert ["whoever reaches it may read it" in each for each in told] == [True]
        await first.stop()

    asyncio.run(scenario())


def test_callers_beyond_a_number_are_hung_up_on_until_others_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)

    async def scenario() -> None:
        endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, "well"))
        host, port = await endpoint.start()
        try:
            idle = [await asyncio.open_connection(host, port) for _ in range(2)]
            for reader, writer in idle:  # an answer shows that it was let in
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                await asyncio.wait_for(reader.readuntil(b"well\n"), 10)
            reader, writer = await asyncio.open_connection(host, port)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            runner = endpoint._runner
            server = runner and runner.server
            assert server
            idle[0][1].close()
            async with asyncio.timeout(10):
                while len(server.connections) > 1:  # noqa: ASYNC110  # aiohttp tells nobody
                    await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"well\n")
            for _, each in (idle[1], (reader, writer)):
                each.close()
        finally:
            await endpoint.stop()

    asyncio.run(scenario())


def test_stopping_twice_is_harmless() -> None:
    async def stop_twice() -> None:
        endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, ""))
        await endpoint.start()
        await endpoint.stop()
        await endpoint.stop()

    asyncio.run(stop_twice())


def test_importing_the_module_does_not_import_aiohttp() -> None:
    code = "import sys, flatship_service.http; sys.exit('aiohttp' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
