"""Who may read what a daemon's HTTP endpoint says: TLS, and names with passwords.

What the configuration says is ``HttpAccess``; ``protection`` reads the files that it names.
"""

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from flatship_service.configfile import Loaded, WrongConfiguration
from flatship_service.configvalues import WrongValues
from flatship_service.errors import ConfigError, KeyFileError
from flatship_service.passwords import Users, load_users
from flatship_service.secret_files import read_secret_file

MAX_KEY: Final = 1 << 16  # bytes

L = TypeVar("L", bound=Loaded[Any])


class HttpAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the ``[http]`` table: files in PEM, and one with users.

    ``certificate`` begins with the daemon's own, and others that lead to a root may follow.
    """

    certificate: Path | None = None
    key: Path | None = None
    users_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse one half of a pair."""
        if (self.certificate is None) != (self.key is None):
            absent, given = ("key", "certificate") if self.key is None else ("certificate", "key")
            raise WrongValues([((absent,), f"required beside {given}, and missing")])


@dataclass(frozen=True, slots=True)
class Protection:
    """What callers are held to, ready for use; nothing without arguments."""

    tls: ssl.SSLContext | None = None
    users: Users | None = None


def protection(access: HttpAccess) -> Protection:
    """Read certificate, key and users.

    Raises:
        ConfigError: One of them cannot be used; the message names the file and what to do.
    """
    try:
        return Protection(_tls(access), _users(access))
    except _Unusable as error:
        raise ConfigError(f"http.{error.key}: {error}") from error


def succeeding(present: Protection, new: Protection) -> tuple[Protection, Sequence[str]]:
    """What a listener that has ``present`` can take on of ``new``, and keys that take a restart.

    One that began without TLS goes on without it, and the other way round.
    """
    if (present.tls is None) == (new.tls is None):
        return new, ()
    return Protection(present.tls, new.users), ("http.certificate",)


def checked(loaded: L) -> L:
    """Return a configuration whose ``http`` names files that can be used.

    Raises:
        WrongConfiguration: Names those that cannot.
    """
    faults = [(("http", *key), what) for key, what in _faults(loaded.value.http)]
    if faults:
        raise WrongConfiguration(loaded.problems(faults))
    return loaded


def exposure(host: str, held_to: Protection) -> str | None:
    """What strangers on the network can do with a listener on ``host``; None if nothing."""
    if _is_loopback(host):
        return None
    if held_to.users is None:
        return "whoever reaches it may read it; set users_file, or listen on 127.0.0.1"
    if held_to.tls is None:
        return "passwords travel in the clear; set certificate and key, or listen on 127.0.0.1"
    return None


class _Unusable(Exception):
    """A file that the configuration names cannot be used; ``key`` is where it is named."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key = key


def _faults(access: HttpAccess) -> Iterator[tuple[tuple[str], str]]:
    for read in (_tls, _users):
        try:
            read(access)
        except _Unusable as error:
            yield (error.key,), str(error)


def _users(access: HttpAccess) -> Users | None:
    if access.users_file is None:
        return None
    try:
        return load_users(access.users_file)
    except (ConfigError, KeyFileError) as error:
        raise _Unusable("users_file", str(error)) from error


def _tls(access: HttpAccess) -> ssl.SSLContext | None:
    if access.certificate is None or access.key is None:
        return None
    try:
        read_secret_file(access.key, "key", MAX_KEY, group_may_read=True)
    except KeyFileError as error:
        raise _Unusable("key", str(error)) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Into one that is thrown away: which of the two files is at fault?
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(access.certificate)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        what = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else _reason(error)
        raise _Unusable("certificate", f"certificate {access.certificate}: {what}") from error
    try:
        context.load_cert_chain(access.certificate, access.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise _Unusable("key", f"key {access.key}: {_wrong_key(error, access)}") from error
    return context


class _Encrypted(ValueError):
    """A key is encrypted, and nobody is there to be asked."""


def _no_passphrase() -> str:
    raise _Encrypted("encrypted; expected a key without a passphrase")


def _wrong_key(error: Exception, access: HttpAccess) -> str:
    if not isinstance(error, ssl.SSLError):
        return _reason(error)
    if "MISMATCH" in (error.reason or ""):
        return f"does not belong to certificate {access.certificate}"
    return "holds no private key in PEM"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
