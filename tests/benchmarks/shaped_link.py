"""A link of a given rate: a network namespace at the far end, a veth pair, a token bucket each way.

The rate holds for what the token bucket counts, Ethernet frames with all headers, and
``counted`` reads the same account: at full use, bytes over rate is the time that passed.
The queue before the bucket holds 50 ms, as a modest router's does. There is no
added delay: this kernel has no netem.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.processes import BenchmarkError
from benchmarks.way import Way

MBIT = 1_000_000  # bits a second

_FAR = "far"  # the interface in the namespace
_BURST = 0.002  # seconds at full rate that may pass at once
_QUEUE = 0.05  # seconds at full rate that may wait
# Bytes that the stack may hand down as one packet, with the headers that its 46 segments will
# have. A smaller burst would cut longer packets, but for ever hold up one that waited already
# when the rate fell.
_LONGEST_PACKET = 72_000
_TIMEOUT = 20.0  # seconds for ip and tc


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes that left each end, headers of all layers down to Ethernet's included."""

    there: int  # from the sender to the receiver
    back: int
    waiting: int  # in the queue towards the receiver, now

    def since(self, earlier: "Wire") -> "Wire":
        """What has passed since ``earlier``, on a link that was not reshaped to or from None."""
        return Wire(self.there - earlier.there, self.back - earlier.back, self.waiting)


@dataclass(frozen=True, slots=True)
class ShapedLink:
    """The near interface is in this process's namespace, the far one in ``namespace``."""

    namespace: str
    interface: str
    near: str  # addresses
    far: str

    @property
    def way(self) -> Way:
        """For whom the receiver is at the far end."""
        return Way(self.far, ("ip", "netns", "exec", self.namespace))

    def shape(self, rate: float | None) -> None:
        """Set both directions to ``rate`` bits a second, or to no limit. Traffic goes on."""
        for tc, interface in self._ends():
            discipline = ["pfifo"] if rate is None else _token_bucket(rate)
            _checked(*tc, "qdisc", "replace", "dev", interface, "root", *discipline)

    def counted(self) -> Wire:
        """The account of both ends since the link was last given or relieved of a limit."""
        near, far = (
            json.loads(_checked(*tc, "-s", "-j", "qdisc", "show", "dev", interface))[0]
            for tc, interface in self._ends()
        )
        return Wire(near["bytes"], far["bytes"], near["backlog"])

    def _ends(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return ((("tc",), self.interface), (("tc", "-n", self.namespace), _FAR))


@contextmanager
def shaped_link() -> Iterator[ShapedLink]:
    """A link without limit; it and its namespace are gone after the block, however that ends.

    Raises:
        BenchmarkError: This is not root, or the kernel lacks something of it.
    """
    if os.geteuid() != 0:
        raise BenchmarkError("a shaped link takes a network namespace: run this as root")
    number = os.getpid()
    network = f"10.{250 - number // 65536 % 50}.{number // 256 % 256}"
    first = number % 64 * 4
    link = ShapedLink(
        namespace=f"flatship-bench-{number}",
        interface=f"fsb{number}",
        near=f"{network}.{first + 1}",
        far=f"{network}.{first + 2}",
    )
    try:
        _checked("ip", "netns", "add", link.namespace)
        pair = ("type", "veth", "peer", "name", _FAR, "netns", link.namespace)
        _checked("ip", "link", "add", link.interface, *pair)
        beyond = ("-n", link.namespace)
        for where, interface, address in (
            ((), link.interface, link.near),
            (beyond, _FAR, link.far),
        ):
            _checked("ip", *where, "address", "add", f"{address}/30", "dev", interface)
            _checked("ip", *where, "link", "set", interface, "addrgenmode", "none", "up")
        _checked("ip", *beyond, "link", "set", "lo", "up")
        link.shape(None)
        yield link
    finally:
        for removal in (("link", "delete", link.interface), ("netns", "delete", link.namespace)):
            with suppress(BenchmarkError):  # it was never made
                _checked("ip", *removal)


def _token_bucket(rate: float) -> list[str]:
    burst = max(_LONGEST_PACKET, round(rate / 8 * _BURST))
    limit = max(_LONGEST_PACKET, round(rate / 8 * _QUEUE))
    return ["tbf", "rate", f"{rate:.0f}bit", "burst", str(burst), "limit", str(limit)]


def _checked(*command: str) -> str:
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
    )
    if finished.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)}: {finished.stderr.strip()}")
    return finished.stdout
