"""Who looks at the page: all are told the same, and none of them holds anything up."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec
import pytest

from flatship_service.http import HttpEndpoint
from flatship_service.page import viewers as module
from flatship_service.page.routes import FILES, FOLDER, POLICY, routes
from flatship_service.page.view import MAX_TEXT, Problem, Sample, Tone, View, shown
from flatship_service.page.viewers import Viewers

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LARGE = 40  # problems that make a moment of half a megabyte


class Counting:
    """A ``PageSource`` that counts how often it is asked."""

    def __init__(self, filling: int = 0) -> None:
        self.looks = self.views = 0
        self._filling = filling

    def look(self, now: float) -> Sample:
        self.looks += 1
        return Sample(float(self.looks), 1000.0 * self.looks)

    def view(self, now: float) -> View:
        self.views += 1
        problem = Problem(at=0.0, subject="s", message="m" * 12_000, advice="a")
        return View(
            program="receiver",
            version="1",
            host="h",
            at=float(self.views),
            state="idle",
            tone=Tone.IDLE,
            rate_of="r",
            disks=[],
            problems=[problem] * self._filling,
        )


@asynccontextmanager
async def page(source: Counting) -> AsyncIterator[tuple[Viewers, tuple[str, int]]]:
    viewers = Viewers(source)
    endpoint = HttpEndpoint(render=lambda: b"", health=lambda: (True, "ok"), routes=routes(viewers))
    address = await endpoint.start()
    try:
        async with viewers.kept_up():
            yield viewers, address
    finally:
        await endpoint.stop()


async def ask(
    address: tuple[str, int], path: str, *, method: str = "GET", extra: str = ""
) -> Stream:
    stream = await asyncio.open_connection(*address)
    request = f"{method} {path} HTTP/1.1\r\nHost: h\r\n{extra}\r\n"
    stream[1].write(request.encode())
    return stream


async def moment(reader: asyncio.StreamReader) -> View:
    """The next moment that a viewer is told."""
    while True:
        line = await reader.readuntil(b"\n")
        if line.startswith(b"data: "):
            return msgspec.json.decode(line[6:], type=View)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # of things that tell nobody
            await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.05)


def test_a_moment_is_made_once_for_200_viewers_of_which_some_never_read() -> None:
    async def test() -> None:
        source = Counting()
        async with page(source) as (viewers, address):
            streams = [await ask(address, "/events") for _ in range(200)]
            reading = [reader for reader, _ in streams[20:]]
            told = [await asyncio.gather(*(moment(reader) for reader in reading)) for _ in "123"]
            assert viewers.count == 200
            assert source.views <= source.looks + 1
            assert len({view.at for views in told for view in views}) <= source.views
            for _, writer in streams:
                writer.close()
            await eventually(lambda: viewers.count == 0)

    run(test)


def test_nothing_is_made_while_nobody_looks_but_the_history_is_kept() -> None:
    async def test() -> None:
        source = Counting()
        async with page(source) as (_, address):
            await eventually(lambda: source.looks > 5)
            assert source.views == 0
            reader, writer = await ask(address, "/events")
            first, second = await moment(reader), await moment(reader)
            writer.close()
        assert first.full
        assert len(first.history) > 5
        assert not second.full
        assert len(second.history) == 1

    run(test)


def test_one_viewer_too_many_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VIEWERS", 3)

    async def test() -> None:
        async with page(Counting()) as (viewers, address):
            streams = [await ask(address, "/events") for _ in range(3)]
            await eventually(lambda: viewers.count == 3)
            reader, writer = await ask(address, "/events", extra="Connection: close\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503")
            assert viewers.count == 3
            for _, each in (*streams, (reader, writer)):
                each.close()

    run(test)


def test_viewer_that_never_reads_holds_up_no_other_and_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.4)

    async def test() -> None:
        async with page(Counting(LARGE)) as (viewers, address):
            deaf = [await ask(address, "/events") for _ in range(5)]
            for reader, _ in deaf:
                reader._transport.pause_reading()  # type: ignore[attr-defined]
            await eventually(lambda: viewers.count == 5)
            stream = await asyncio.open_connection(*address, limit=1 << 22)
            stream[1].write(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")
            for _ in range(4):
                await moment(stream[0])
            await eventually(lambda: viewers.count == 1)
            await moment(stream[0])
            for _, writer in (*deaf, stream):
                writer.close()

    run(test)


def test_viewer_that_was_behind_is_told_the_newest_and_all_of_the_history() -> None:
    async def test() -> None:
        source = Counting(LARGE)
        async with page(source) as (_, address):
            reader, writer = await asyncio.open_connection(*address, limit=1 << 22)
            writer.write(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")
            await moment(reader)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            seen = source.looks
            await eventually(lambda: source.looks > seen + 20)
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            told = [await moment(reader) for _ in range(12)]
            skipped = [later for earlier, later in pairwise(told) if later.at > earlier.at + 1]
            assert skipped, [view.at for view in told]
            assert all(view.full for view in skipped)
            writer.close()

    run(test)


def test_a_defect_of_the_page_is_logged_once_and_costs_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        source = Counting()
        async with page(source) as (viewers, address):
            reader, writer = await ask(address, "/events")
            await moment(reader)
            with monkeypatch.context() as broken:
                broken.setattr(source, "view", None)
                broken.setattr(source, "look", None)
                looks = viewers._looks
                await eventually(lambda: viewers._looks > looks + 5)
            await moment(reader)
            writer.close()

    run(test)
    assert caplog.text.count("not up to date") == 1


def test_viewers_are_sent_away_when_the_daemon_stops() -> None:
    async def test() -> None:
        async with page(Counting()) as (_, address):
            reader, writer = await ask(address, "/events")
            await moment(reader)
        assert b"data" not in (await reader.read())[-20:]
        writer.close()

    run(test)


def answer(path: str, *, method: str = "GET", extra: str = "") -> tuple[str, bytes]:
    found: list[bytes] = []

    async def test() -> None:
        async with page(Counting()) as (_, address):
            reader, writer = await ask(
                address, path, method=method, extra=f"Connection: close\r\n{extra}"
            )
            found.append(await reader.read())
            writer.close()

    run(test)
    head, _, body = found[0].partition(b"\r\n\r\n")
    return head.decode(), body


@pytest.mark.parametrize("path", FILES)
def test_every_file_comes_with_the_policy_that_forbids_all_but_itself(path: str) -> None:
    head, body = answer(path)

    assert head.startswith("HTTP/1.1 200")
    assert f"Content-Security-Policy: {POLICY}" in head
    assert "unsafe" not in POLICY
    assert "X-Content-Type-Options: nosniff" in head
    assert body == (FOLDER / FILES[path][0]).read_bytes()


def test_file_that_the_browser_has_is_not_sent_again() -> None:
    tag = re.search(r"ETag: (\S+)", answer("/page.js")[0])
    assert tag
    head, body = answer("/page.js", extra=f"If-None-Match: {tag[1]}\r\n")

    assert head.startswith("HTTP/1.1 304")
    assert not body


def test_head_of_the_events_ends() -> None:
    head, body = answer("/events", method="HEAD")

    assert head.startswith("HTTP/1.1 200")
    assert not body


@pytest.mark.parametrize("path", ["/../view.py", "/static/page.js", "/page.js/", "/events/x"])
def test_nothing_but_the_files_of_the_page_is_served(path: str) -> None:
    assert answer(path)[0].startswith("HTTP/1.1 404")


def test_page_is_small_and_neither_inline_nor_from_elsewhere() -> None:
    files = {path.name: path.read_text() for path in FOLDER.iterdir()}
    html = files["index.html"]

    assert set(files) == {name for name, _ in FILES.values()}
    assert sum(len(text.encode()) for text in files.values()) < 200_000
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for name, text in files.items():
        assert not re.search(r"(?<!xmlns=\")(?<!= \")https?://", text), name
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert forbidden not in files["page.js"]


@pytest.mark.parametrize("text", ["\u202egpj", "a\nb", "\x1b[2J", "x" * 5000])
def test_text_that_is_shown_is_harmless_and_short(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= MAX_TEXT
