"""A sender that may come, and what it may do. Pure; the file is ``authorized_senders.py``.

A peer is written as one line, options first as in SSH's ``authorized_keys``::

    disks="web-*",datastore="ssd1",max-bytes=2T,from="10.0.0.0/8" KEY comment

``disks``: patterns of VM names, or of ``VM/DISK``, commas between them; ``datastore``: names;
``max-bytes``: size of the largest disk; ``from``: networks. What is not restricted is allowed.
"""

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from flatship_protocol.constants import KEY_SIZE
from flatship_protocol.errors import ErrorCode
from flatship_service.keys import fingerprint, format_key, parse_key
from flatship_service.units import format_size, parse_size

NO_PSK: Final = bytes(KEY_SIZE)  # SPEC.md, "Handshake": keys entered by hand
OPTIONS: Final = ("disks", "datastore", "max-bytes", "from")

_OPTION: Final = re.compile(
    r"""(?P<name>[a-z-]+)=(?:"(?P<quoted>[^"]*)"|(?P<bare>[^",\s]+))(?P<end>,|\ +)""", re.VERBOSE
)


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a peer may not do something: the code is for the peer, the reason for our log."""

    code: ErrorCode
    reason: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A sender that is authorised. Its repr does not show the psk.

    Args:
        public: Static public key, 32 bytes.
        name: What operators call it: the line's comment, or else the fingerprint.
        psk: 32 bytes; zeros for a key that was entered by hand.
        disks: Patterns of VM names, or of VM and disk with a slash between;
            empty: every disk.
        datastores: Names; empty: every datastore.
        max_bytes: Size of the largest disk; None: any.
        networks: Where it may come from; empty: anywhere.
    """

    public: bytes
    name: str
    psk: bytes = field(default=NO_PSK, repr=False)
    disks: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    max_bytes: int | None = None
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What operators compare."""
        return fingerprint(self.public)

    def may_come_from(self, address: str) -> bool:
        """Whether ``from`` allows a connection from ``address``."""
        if not self.networks:
            return True
        parsed = ip_address(address)
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self.networks)

    def permits(self, vm: str, disk: str, datastore: str, size: int, address: str) -> Denial | None:
        """Return None if the peer may write this disk, or else why not.

        Args:
            vm: Name of the machine's folder.
            disk: Base name of the disk.
            datastore: The one that will be used, its default already applied.
            size: Bytes of the disk.
            address: Where the connection comes from.
        """
        if not self.may_come_from(address):
            return self._denial(f"from {address}")
        if self.disks and not any(_matches(pattern, vm, disk) for pattern in self.disks):
            return self._denial(f"disk {vm}/{disk}")
        if self.datastores and datastore not in self.datastores:
            return self._denial(f"datastore {datastore}")
        if self.max_bytes is not None and size > self.max_bytes:
            return Denial(
                ErrorCode.QUOTA_EXCEEDED,
                f"{self.name}: {vm}/{disk} has {size} bytes, max-bytes is {self.max_bytes} "
                f"({format_size(self.max_bytes)})",
            )
        return None

    def _denial(self, what: str) -> Denial:
        return Denial(
            ErrorCode.NOT_PERMITTED, f"{self.name}: {what} is not among what its line allows"
        )


def parse_peer(line: str) -> Peer:
    """Return the peer that ``line`` describes, without its psk.

    Raises:
        ValueError: An option is unknown, repeated, empty or wrong, or the key is.
    """
    options: dict[str, str] = {}
    position, more = 0, True
    while more and (match := _OPTION.match(line, position)):
        name, value = match["name"], match["quoted"] or match["bare"] or ""
        if name not in OPTIONS:
            raise ValueError(f"unknown option {name}; known are {', '.join(OPTIONS)}")
        if name in options:
            raise ValueError(f"option {name} is given twice")
        options[name] = value
        position, more = match.end(), match["end"] == ","
    if position and more:
        raise ValueError(f"expected another option after the comma, got {line[position:]!r}")
    key, _, comment = line[position:].partition(" ")
    try:
        public = parse_key(key)
    except ValueError as error:
        raise ValueError(f"{error}; a line is: [options] key [comment]") from None
    return Peer(
        public=public,
        name=comment.strip() or fingerprint(public),
        disks=_words(options, "disks"),
        datastores=_words(options, "datastore"),
        max_bytes=_max_bytes(options),
        networks=tuple(_network(word) for word in _words(options, "from")),
    )


def format_peer(peer: Peer) -> str:
    """Return the line of ``peer``; the psk is not part of it.

    Raises:
        ValueError: A pattern, a datastore or the name cannot be written on such a line.
    """
    written = {
        "disks": peer.disks,
        "datastore": peer.datastores,
        "from": tuple(str(network) for network in peer.networks),
    }
    options = [f'{name}="{",".join(words)}"' for name, words in written.items() if words]
    if peer.max_bytes is not None:
        options.append(f"max-bytes={peer.max_bytes}")
    line = " ".join([*([",".join(options)] if options else []), format_key(peer.public), peer.name])
    reread = parse_peer(line) if line.isprintable() else None
    if reread is None or (reread.name, reread.disks, reread.datastores) != (
        peer.name,
        peer.disks,
        peer.datastores,
    ):
        raise ValueError(f"names of {peer.name!r} hold quotes, commas or control characters")
    return line


def _matches(pattern: str, vm: str, disk: str) -> bool:
    """Names hold no slash, so a pattern without one speaks of all disks of a VM."""
    of_vm, slash, of_disk = pattern.partition("/")
    return fnmatchcase(vm, of_vm) and (not slash or fnmatchcase(disk, of_disk))


def _words(options: dict[str, str], name: str) -> tuple[str, ...]:
    if name not in options:
        return ()
    words = tuple(word.strip() for word in options[name].split(","))
    if not all(words):
        raise ValueError(f"option {name} holds an empty word: {options[name]!r}")
    return words


def _max_bytes(options: dict[str, str]) -> int | None:
    if "max-bytes" not in options:
        return None
    try:
        return parse_size(options["max-bytes"])
    except ValueError as error:
        raise ValueError(f"option max-bytes: {error}") from None


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"option from: expected networks such as 10.0.0.0/8: {error}") from None
