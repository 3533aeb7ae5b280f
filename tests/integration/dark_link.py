"""A link between two network namespaces that can go dark: what is sent is lost, without a word."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pytest
from disks import is_root

NOBODYS_ADDRESS: Final = "02:00:00:00:00:99"  # of no network interface here

needs_namespaces = pytest.mark.skipif(
    not (shutil.which("ip") and is_root()), reason="makes network namespaces, which takes root"
)


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, timeout=20, capture_output=True)


@dataclass(frozen=True)
class DarkLink:
    """A pair of interfaces, ours and that of the namespace at the ``far`` address."""

    namespace: str
    interface: str
    near: str
    far: str

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def go_dark(self) -> None:
        """From now on frames of either end are addressed to nobody, and dropped by the other."""
        wrong = ("lladdr", NOBODYS_ADDRESS, "nud", "permanent")
        _ip("neigh", "replace", self.far, *wrong, "dev", self.interface)
        _ip("-n", self.namespace, "neigh", "replace", self.near, *wrong, "dev", "far")


def set_plain_packets(link: DarkLink) -> None:
    """Have the interfaces carry, and count, packets as a wire would, not some 64 KiB at once."""
    _ip("link", "set", link.interface, "gso_max_segs", "1")
    _ip("-n", link.namespace, "link", "set", "far", "gso_max_segs", "1")


@contextmanager
def dark_link() -> Iterator[DarkLink]:
    """A link that works until it is told not to; gone after the block."""
    number = os.getpid()
    network = f"10.{200 + number // 65536 % 50}.{number // 256 % 256}.{number % 64 * 4}"
    prefix, last = network.rsplit(".", 1)
    near, far = f"{prefix}.{int(last) + 1}", f"{prefix}.{int(last) + 2}"
    link = DarkLink(f"flatship-{number}", f"fs{number}", near, far)
    _ip("netns", "add", link.namespace)
    try:
        ours = ("link", "add", link.interface, "type", "veth")
        _ip(*ours, "peer", "name", "far", "netns", link.namespace)
        for where, interface, address in (
            ((), link.interface, near),
            (("-n", link.namespace), "far", far),
        ):
            _ip(*where, "address", "add", f"{address}/30", "dev", interface)
            _ip(*where, "link", "set", interface, "up")
        _ip("-n", link.namespace, "link", "set", "lo", "up")
        yield link
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", link.interface)
        _ip("netns", "delete", link.namespace)
