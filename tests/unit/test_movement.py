"""What shows that a peer lives, what that a link carries, and what only that a host is up."""

from flatship_protocol.connection.movement import Counts, Movement


def moved(*looks: tuple[int, int, bool]) -> tuple[float, float]:
    """When something was heard, and taken, after looks at 1 s, 2 s … at (acked, received, more)."""
    movement = Movement(0.0)
    for second, (acked, received, waiting) in enumerate(looks, 1):
        movement.look(Counts(acked, received, waiting=waiting), float(second))
    return movement.heard_at, movement.taken_at


def test_what_comes_counts_although_nobody_reads_it():
    assert moved((0, 10, False), (0, 20, False), (0, 20, False)) == (2.0, 0.0)


def test_what_is_acknowledged_counts_while_more_waits():
    assert moved((10, 0, True), (20, 0, True), (20, 0, True)) == (0.0, 2.0)


def test_a_ping_that_a_stopped_peers_host_acknowledges_is_no_movement():
    assert moved((80, 0, False), (160, 0, False)) == (0.0, 0.0)


def test_a_shut_window_that_is_only_probed_is_no_movement():
    assert moved((9000, 0, True), *[(9000, 0, True)] * 5) == (0.0, 1.0)


def test_what_was_read_was_heard():
    movement = Movement(0.0)
    movement.heard(3.0)
    assert (movement.heard_at, movement.taken_at) == (3.0, 0.0)
