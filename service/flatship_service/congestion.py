"""TCP's congestion control by name, as the kernel offers it. See tcp(7), TCP_CONGESTION."""

import socket
from pathlib import Path
from typing import Final

_OFFERED: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_SYSTEMS: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def use_congestion_control(sock: socket.socket, name: str | None) -> None:
    """Have a socket, and those accepted from it, use congestion control ``name``; None changes
    nothing.

    Raises:
        ValueError: The kernel does not offer it, or not to this user; lists those it offers.
    """
    if name is None:
        return
    try:
        encoded = name.encode("ascii")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, encoded)
    except PermissionError:
        raise ValueError(
            f"{name!r} is for root alone; expected one of: {_listed(_ALLOWED)}"
        ) from None
    except (OSError, ValueError):
        raise ValueError(
            f"{name!r} is not known to this kernel; expected one of: {_listed(_OFFERED)}"
        ) from None


def system_congestion_control() -> str | None:
    """The one of sockets for which nobody chooses; None if the kernel does not say."""
    try:
        return _SYSTEMS.read_text().strip()
    except OSError:
        return None


def check_congestion_control(name: str) -> str:
    """Return ``name``.

    Raises:
        ValueError: As for ``use_congestion_control``.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        use_congestion_control(sock, name)
    return name


def _listed(path: Path) -> str:
    try:
        return ", ".join(path.read_text().split())
    except OSError:
        return "those that sysctl net.ipv4.tcp_available_congestion_control shows"
