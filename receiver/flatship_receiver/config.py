"""What can be set at a receiver: file, then command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.names import name_problem
from flatship_service.configfile import CongestionControl, load
from flatship_service.errors import ConfigError
from flatship_service.paths import default_config_file, state_folder

DEFAULT_LISTEN: Final = "0.0.0.0:7071"
DEFAULT_HTTP: Final = "127.0.0.1:9471"


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file's keys. ``datastore`` maps names to paths; the first one is the default."""

    listen: str = DEFAULT_LISTEN
    http: str = DEFAULT_HTTP
    congestion_control: CongestionControl | None = None
    datastore: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Config:
    """What ``serve`` runs with, checked."""

    listen: Endpoint
    http: Endpoint
    datastores: dict[str, Path]
    state: Path
    prove: bool = True
    congestion_control: str | None = None


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
    path = config or default_config_file("receiver")
    file = load(path, ConfigFile, must_exist=config is not None)
    chosen = dict(datastores) or {name: Path(text) for name, text in file.datastore.items()}
    if len(dict(datastores)) != len(datastores):
        raise ConfigError("two datastores have the same name")
    for name in chosen:
        if problem := name_problem(name):
            raise ConfigError(f"datastore {name!r} cannot be called that: the name {problem}")
    return Config(
        listen=listen or _endpoint("listen", file.listen),
        http=http or _endpoint("http", file.http),
        datastores=chosen,
        state=state_folder("receiver", state),
        prove=prove,
        congestion_control=congestion_control or file.congestion_control,
    )


def _endpoint(key: str, text: str) -> Endpoint:
    try:
        return parse_endpoint(text)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
