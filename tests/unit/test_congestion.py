"""Congestion control is what was asked for, or refused with those that there are."""

import socket
from pathlib import Path

import pytest

from flatship_service.congestion import check_congestion_control, use_congestion_control


def used(sock: socket.socket) -> str:
    value = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return value.rstrip(b"\0").decode()


def test_connections_accepted_from_a_socket_use_what_was_set_for_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_congestion_control(server, "reno")
        with socket.create_connection(server.getsockname()) as ours:
            theirs, _ = server.accept()
            with theirs:
                assert used(theirs) == "reno"
            default = used(ours)
            use_congestion_control(ours, None)
            assert used(ours) == default


@pytest.mark.parametrize("name", ["warp", "", "é", "a\0b", "x" * 1000])
def test_one_that_the_kernel_does_not_offer_is_refused_with_those_it_does(name: str) -> None:
    offered = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    with pytest.raises(ValueError, match="is not known to this kernel") as refused:
        check_congestion_control(name)
    assert f"expected one of: {', '.join(offered)}" in str(refused.value)
