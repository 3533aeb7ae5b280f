"""Network addresses as people write them: ``HOST:PORT``, ``[IPv6]:PORT``."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final

MAX_HOST_LENGTH: Final = 253  # characters, RFC 1035

_WRITTEN: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Za-z:.%_-]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII
)
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host name or address, without brackets, and a TCP port (0 to 65535)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Return what ``text`` names; nothing is looked up.

    Raises:
        ValueError: Not HOST:PORT with a well-formed host and a port up to 65535.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise ValueError(f"expected HOST:PORT or [IPv6]:PORT, got {text!r}")
    host, port = match["ipv6"] or match["host"] or "", int(match["port"])
    if not (_is_ipv6(host) if match["ipv6"] is not None else _is_host(host)):
        raise ValueError(f"expected a host name or an address before the port, got {host!r}")
    if port > 0xFFFF:
        raise ValueError(f"expected a port up to 65535, got {port}")
    return Endpoint(host, port)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def _is_host(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return len(text) <= MAX_HOST_LENGTH and all(_LABEL.fullmatch(label) for label in labels)
