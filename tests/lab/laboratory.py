"""A guest with a volume group, and a receiver outside it that it has paired with."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from processes import Receiver

from lab.guest import Guest


@dataclass(frozen=True)
class Lab:
    """The guest, which has the volume group ``vg0`` on /dev/vdc, and the receiver."""

    guest: Guest
    receiver: Receiver

    def send(self, *sources: str, vm: str, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Send volumes from inside the guest, to their publication; returns the disks' results."""
        words = ("send", *sources, "--to", "esx", "--vm", vm, "--json", *options)
        disks: list[dict[str, Any]] = json.loads(self.guest.run(self.guest.sender(*words)).stdout)[
            "disks"
        ]
        return disks

    def arrived(self, volume: str, vm: str, disk: str = "") -> bool:
        """Whether the published extent has the bytes that the volume has now."""
        there = self.guest.output(f"sha256sum < {volume}").split()[0]
        with self.receiver.flat(vm, disk).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == there
