"""TLS and logins of the HTTP endpoint, over real connections."""

import asyncio
import base64
import datetime
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flatship_service import passwords
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint, Route
from flatship_service.http_access import (
    HttpAccess,
    Protection,
    exposure,
    protection,
    succeeding,
)
from flatship_service.http_login import MAX_WAITING
from flatship_service.passwords import PasswordHash, Users

RUNNERS: list[Callable[[Coroutine[Any, Any, Any]], Any]] = [asyncio.run, uvloop.run]
NEVER_AGAIN = datetime.datetime(2100, 1, 1)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOG_COST", 4)
    monkeypatch.setattr(passwords, "PARALLEL", 1)


class Authority:
    """Makes a certificate of its own with its key, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.access = HttpAccess(certificate=folder / "http.crt", key=folder / "http.key")

    def issue(self, passphrase: bytes | None = None) -> ssl.SSLContext:
        """Put a new pair in place; returns what trusts only that."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2020, 1, 1))
            .not_valid_after(NEVER_AGAIN)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        certificate = made.public_bytes(serialization.Encoding.PEM)
        assert self.access.certificate
        assert self.access.key
        self.access.certificate.write_bytes(certificate)
        self.access.key.touch(0o600)
        self.access.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(passphrase)
                if passphrase
                else serialization.NoEncryption(),
            )
        )
        trusting = ssl.create_default_context(cadata=certificate.decode())
        trusting.check_hostname = False
        return trusting


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def ask(
    address: tuple[str, int], authorization: str = "", tls: ssl.SSLContext | None = None
) -> tuple[int, str]:
    """Status and all of the answer."""
    reader, writer = await asyncio.open_connection(*address, ssl=tls)
    header = f"Authorization: {authorization}\r\n" if authorization else ""
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{header}\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    return int(answer.split()[1]), answer


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Listening:
    """An endpoint that listens, and what it told of logins."""

    def __init__(self, held_to: Protection) -> None:
        self.refused: list[tuple[str, str]] = []
        self.endpoint = HttpEndpoint(
            render=lambda: b"up 1\n",
            health=lambda: (True, ""),
            protection=held_to,
            refused=lambda *what: self.refused.append(what),
        )

    async def __aenter__(self) -> tuple[str, int]:
        return await self.endpoint.start()

    async def __aexit__(self, *_: object) -> None:
        await self.endpoint.stop()


ADA = Protection(users=Users({"ada": PasswordHash.of(b"difference")}))


@pytest.mark.parametrize("run", RUNNERS)
def test_who_has_the_password_is_answered_and_who_has_not_is_asked_for_it(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def scenario() -> None:
        listening = Listening(ADA)
        async with listening as address:
            status, answer = await ask(address)
            assert status == 401
            assert 'WWW-Authenticate: Basic realm="flatship"' in answer
            assert listening.refused == []  # who says nothing has not failed
            for _ in range(2):  # hashed, then known
                status, answer = await ask(address, basic("ada", "difference"))
                assert status == 200
                assert answer.endswith("up 1\n")

    run(scenario())


@pytest.mark.parametrize(
    "authorization",
    [
        basic("ada", "wrong"),
        basic("eve", "difference"),
        basic("ada", ""),
        basic("", ""),
        basic("ada", "x" * 2000),
        "Basic",
        "Basic ????",
        "Basic " + base64.b64encode(b"ada").decode(),
        "Basic " + base64.b64encode(b"\xff:difference").decode(),
        "Bearer " + base64.b64encode(b"ada:difference").decode(),
    ],
)
def test_a_failed_login_is_refused_and_told(authorization: str) -> None:
    async def scenario() -> None:
        listening = Listening(ADA)
        async with listening as address:
            assert (await ask(address, authorization))[0] == 401
            assert listening.refused == [("password", "127.0.0.1")]

    asyncio.run(scenario())


def test_who_may_look_no_longer_is_hung_up_on_while_being_answered() -> None:
    async def forever(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"more to come")
        await asyncio.Event().wait()
        return response

    async def scenario() -> None:
        users = Users({"ada": PasswordHash.of(b"difference")})
        held_to = Protection(users=users)
        endpoint = HttpEndpoint(
            lambda: b"", lambda: (True, ""), held_to, routes=[Route("/page", forever)]
        )
        reader, writer = await asyncio.open_connection(*await endpoint.start())
        try:
            login = basic("ada", "difference")
            head = f"GET /page HTTP/1.1\r\nHost: h\r\nAuthorization: {login}\r\n\r\n"
            writer.write(head.encode())
            await asyncio.wait_for(reader.readuntil(b"more to come"), 10)
            endpoint.protect(Protection(users=users))  # the same ones
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(), 0.05)
            endpoint.protect(Protection(users=Users({"eve": PasswordHash.of(b"another")})))
            await asyncio.wait_for(reader.read(), 10)
            assert reader.at_eof()
        finally:
            writer.close()
            await endpoint.stop()

    asyncio.run(scenario())


def test_of_many_guesses_at_once_few_wait_and_those_who_are_known_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        users = Users({"ada": PasswordHash.of(b"difference")})
        assert users.check("ada", b"difference")
        loop, going = asyncio.get_running_loop(), asyncio.Event()
        go: asyncio.Future[None] = loop.create_future()
        at_once: list[str] = []

        async def slow(call: Callable[..., bool], *args: Any) -> bool:
            at_once.append("in")
            going.set()
            await asyncio.shield(go)
            at_once.append("out")
            return call(*args)

        monkeypatch.setattr(asyncio, "to_thread", slow)
        listening = Listening(Protection(users=users))
        async with listening as address:
            guesses = [
                asyncio.create_task(ask(address, basic("ada", str(n)))) for n in range(MAX_WAITING)
            ]
            await going.wait()
            while listening.endpoint._door._waiting < MAX_WAITING:  # noqa: ASYNC110  # they are on their way
                await asyncio.sleep(0.01)
            status, answer = await ask(address, basic("ada", "one more"))
            assert (status, "Retry-After: 1" in answer) == (429, True)
            assert (await ask(address, basic("ada", "difference")))[0] == 200
            go.set_result(None)
            assert [status for status, _ in await asyncio.gather(*guesses)] == [401] * MAX_WAITING
            assert listening.refused.count(("login_busy", "127.0.0.1")) == 1
        assert at_once == ["in", "out"] * MAX_WAITING

    asyncio.run(scenario())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_certificate_that_takes_the_place_of_another_counts_from_the_next_connection_on(
    run: Callable[[Coroutine[Any, Any, None]], None], authority: Authority
) -> None:
    async def scenario() -> None:
        first = authority.issue()
        listening = Listening(protection(authority.access))
        async with listening as address:
            assert listening.endpoint.scheme == "https"
            assert (await ask(address, tls=first))[0] == 200
            second = authority.issue()
            assert (await ask(address, tls=first))[0] == 200
            listening.endpoint.protect(protection(authority.access))
            assert (await ask(address, tls=second))[0] == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(address, tls=first)
            with pytest.raises((ConnectionError, IndexError)):  # no word without TLS
                await ask(address)

    run(scenario())


def test_a_key_that_everybody_can_read_is_refused_with_the_chmod(authority: Authority) -> None:
    authority.issue()
    key = authority.access.key
    assert key
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=f"^http.key: key {key} has mode 0644.*chmod 640 {key}$"):
        protection(authority.access)
    key.chmod(0o640)
    protection(authority.access)


def test_certificate_and_key_that_cannot_be_used_are_told_apart(authority: Authority) -> None:
    certificate, key = authority.access.certificate, authority.access.key
    assert certificate
    assert key

    def said() -> str:
        with pytest.raises(ConfigError) as caught:
            protection(authority.access)
        return str(caught.value)

    assert said() == f"http.key: key {key} does not exist"
    authority.issue()
    certificate.unlink()
    no_certificate = f"http.certificate: certificate {certificate}: "
    assert said() == f"{no_certificate}No such file or directory"
    certificate.write_text("nothing")
    assert said() == f"{no_certificate}holds no certificate in PEM"
    authority.issue()
    other = certificate.read_bytes()
    authority.issue()
    certificate.write_bytes(other)
    assert said() == f"http.key: key {key}: does not belong to certificate {certificate}"
    authority.issue(passphrase=b"secret")
    assert said() == f"http.key: key {key}: encrypted; expected a key without a passphrase"
    authority.issue()
    key.write_text("nothing")
    assert said() == f"http.key: key {key}: holds no private key in PEM"


def test_a_listener_takes_on_users_and_certificates_and_neither_begins_nor_ends_tls() -> None:
    with_tls = Protection(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ADA.users)
    newer = Protection(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert succeeding(with_tls, newer) == (newer, ())
    assert succeeding(Protection(), ADA) == (ADA, ())
    assert succeeding(Protection(), with_tls) == (ADA, ("http.certificate",))
    assert succeeding(with_tls, Protection()) == (
        Protection(with_tls.tls),
        ("http.certificate",),
    )


@pytest.mark.parametrize(
    ("host", "users", "tls", "said"),
    [
        ("127.0.0.1", False, False, None),
        ("::1", False, False, None),
        ("localhost", False, False, None),
        ("0.0.0.0", False, False, "whoever reaches it may read it"),
        ("::", False, True, "whoever reaches it may read it"),
        ("store1.example.net", False, False, "whoever reaches it may read it"),
        ("10.0.0.1", True, False, "passwords travel in the clear"),
        ("10.0.0.1", True, True, None),
    ],
)
def test_a_listener_that_strangers_reach_is_told_of(
    host: str, users: bool, tls: bool, said: str | None
) -> None:
    held_to = Protection(
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None, ADA.users if users else None
    )
    told = exposure(host, held_to)
    assert told is None if said is None else (told or "").startswith(said)
