"""What can be set at a receiver: file, then command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.names import name_problem
from flatship_service.configfile import Loaded, load
from flatship_service.errors import ConfigError
from flatship_service.http_access import HttpAccess
from flatship_service.logs import Level
from flatship_service.paths import default_config_file, state_folder
from flatship_service.written import CongestionControl, Parsers


class DatastoreName(str):
    """What senders ask for; part of no path."""

    __slots__ = ()


def _datastore_name(text: str) -> str:
    if problem := name_problem(text):
        raise ValueError(f"a datastore cannot be called that: the name {problem}")
    return text


DEFAULT_LISTEN: Final = Endpoint("0.0.0.0", 7071)  # noqa: S104  # the port is for all who know a key
DEFAULT_HTTP: Final = Endpoint("127.0.0.1", 9471)
PARSERS: Final[Parsers] = {Endpoint: parse_endpoint, DatastoreName: _datastore_name}


class HttpTable(HttpAccess, frozen=True, kw_only=True):
    """Where metrics are served, and for whom."""

    listen: Endpoint = DEFAULT_HTTP


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file's keys. ``datastore`` maps names to paths; the first one is the default."""

    listen: Endpoint = DEFAULT_LISTEN
    congestion_control: CongestionControl | None = None
    log_level: Level = "info"
    http: HttpTable = msgspec.field(default_factory=HttpTable)
    datastore: dict[DatastoreName, Path] = {}


@dataclass(frozen=True, slots=True)
class Config:
    """What ``serve`` runs with, checked."""

    listen: Endpoint
    http: Endpoint
    datastores: dict[str, Path]
    state: Path
    prove: bool = True
    congestion_control: str | None = None
    log_level: Level = "info"
    http_access: HttpAccess = field(default_factory=HttpAccess)


def read(path: Path | None) -> Loaded[ConfigFile]:
    """Read the file, or that of the system, which need not be there.

    Raises:
        WrongConfiguration: Names file, line, key, what was expected and what was found.
    """
    file = path or default_config_file("receiver")
    return load(file, ConfigFile, must_exist=path is not None, parsers=PARSERS)


def configure(
    *,
    config: Path | None,
    state: Path | None,
    listen: Endpoint | None = None,
    http: Endpoint | None = None,
    datastores: tuple[tuple[str, Path], ...] = (),
    prove: bool = True,
    congestion_control: str | None = None,
) -> Config:
    """Merge file and command line; what the command line says wins.

    Raises:
        ConfigError: A value is not usable; the message names it.
    """
    file = read(config).value
    if len(dict(datastores)) != len(datastores):
        raise ConfigError("two datastores have the same name")
    for name, _ in datastores:
        try:
            _datastore_name(name)
        except ValueError as error:
            raise ConfigError(f"--datastore {name!r}: {error}") from None
    return Config(
        listen=listen or file.listen,
        http=http or file.http.listen,
        datastores=dict(datastores or file.datastore.items()),
        state=state_folder("receiver", state),
        prove=prove,
        congestion_control=congestion_control or file.congestion_control,
        log_level=file.log_level,
        http_access=file.http,
    )
