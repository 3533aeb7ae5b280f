"""``plan`` between real processes: what it measures and asks, and what becomes of what it says."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from disks import MIB, make_data_disk
from processes import Pair, Sender
from raw_peer import RawSender, ScriptedReceiver, hello
from test_hostile_receivers import introduce

from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages import (
    Capability,
    Chunk,
    DiskOpened,
    Error,
    Goodbye,
    HelloOk,
    OpenDisk,
    Probe,
    Probed,
)

LIMIT = 4_000_000  # bytes a second


def test_a_forecast_is_held_against_what_the_transfer_took(pair: Pair, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 12 * MIB)
    asked = ("plan", source, "--to", "esx", "--vm", "web01", "--limit", "4MB", "--json")
    began = time.monotonic()
    planned = pair.sender.run(*asked).expect(0).json
    assert time.monotonic() - began < 40  # on a machine that has other things to do
    link = planned["link"]
    assert link["measured"]
    assert link["limit"] == LIMIT
    assert 0.5 * LIMIT < link["rate"] <= 1.05 * LIMIT  # of a few seconds, at whose end a burst is
    assert planned["disks"][0]["size"] == source.stat().st_size
    assert planned["space"]["fits"]
    assert planned["seconds"]["p50"] < planned["seconds"]["p90"]
    sent = pair.send(source, vm="web01", options=("--limit", "4MB", "--index-limit", "0")).expect(0)
    truth = sent.json["forecast"]
    assert truth["seconds"] == planned["seconds"]
    assert truth["took"] == pytest.approx(truth["ratio"] * truth["seconds"]["p50"])
    assert truth["sent"] == sent.json["totals"]["bytes"]["wire"]
    again = pair.sender.run(*asked[:-1]).expect(0).stdout
    assert "a disk of that name is there already" in again
    assert "times are corrected by" in again
    assert "limited by" in again


def test_a_receiver_refuses_probes_that_were_not_agreed_on(me: RawSender) -> None:
    with me.handshake() as wire:
        wire.send(hello(secrets.token_bytes(16)))
        assert wire.expect(HelloOk).capabilities == Capability.NONE
        wire.send(Probe(0, report=True))
        assert wire.rest() == [Error(ErrorCode.UNSUPPORTED)]


def test_a_receiver_counts_probes_for_each_connection(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with me.handshake() as one, me.handshake() as other:
        for index, wire in enumerate((one, other)):
            wire.send(hello(session, index, capabilities=Capability.PROBE))
            assert wire.expect(HelloOk).capabilities == Capability.PROBE
        one.send(Probe(1000), Probe(44, report=True))
        first = one.expect(Probed)
        other.send(Probe(0, report=True))
        second = other.expect(Probed)
    assert (first.came, second.came) == (1156, 56)
    assert first.clock <= second.clock


@contextmanager
def older(sender: Sender) -> Iterator[ScriptedReceiver]:
    with ScriptedReceiver() as receiver:
        introduce(sender, receiver)
        yield receiver


def test_an_older_receiver_is_asked_and_the_link_is_what_is_named(
    sender: Sender, tmp_path: Path
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 4 * MIB)
    with older(sender) as receiver:
        asked = ("plan", source, "--to", "esx", "--vm", "web01")
        said = sender.run(*asked).expect(0).stdout
        assert "not measured" in said
        assert "this receiver cannot measure the link: name its rate with --rate" in said
        named = sender.run(*asked, "--rate", "10Mbit", "--json").expect(0).json
    assert not named["link"]["measured"]
    assert named["seconds"]["p50"] > 0
    kinds = {type(message) for message in receiver.received}
    assert not kinds & {Probe, Chunk}
    assert {OpenDisk, Goodbye} <= kinds
    assert all(each.dry_run for each in receiver.received if isinstance(each, OpenDisk))


def test_what_no_receiver_would_say_is_an_error_of_one_line(sender: Sender, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", MIB)
    other = DiskOpened(7, 1, bytes(16), MIB, 0)
    answers = {OpenDisk: lambda wire, _: wire.send(other)}
    with ScriptedReceiver(answers) as receiver:  # type: ignore[arg-type]
        introduce(sender, receiver)
        run = sender.run("plan", source, "--to", "esx").expect(1)
    assert run.error == "an answer about disk 7"


# Waves


@contextmanager
def web(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """Something that speaks HTTP; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            status, body = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


EMPTY = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"", "answers 404"),
        (200, b"<html>", "does not answer as a Prometheus does"),
        (200, b"[1]", "does not answer as a Prometheus does"),
        (200, EMPTY, "has recorded no transfer to esx"),
    ],
)
def test_what_is_no_prometheus_or_has_no_data_is_an_error_that_says_so(
    sender: Sender, status: int, body: bytes, error: str
) -> None:
    with web(lambda _: (status, body)) as url:
        run = sender.run("plan", "--from", url, "--to", "esx", "a=1GiB").expect(5)
    assert error in run.error


def test_a_prometheus_that_is_not_there_is_an_error_that_says_so(sender: Sender) -> None:
    run = sender.run("plan", "--from", "http://127.0.0.1:9", "--to", "esx", "a=1GiB").expect(5)
    assert "is Prometheus running there?" in run.error
    assert "is no address" in sender.run("plan", "--from", "x", "--to", "e", "a=1GiB").error
