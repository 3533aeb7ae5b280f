"""Guards of the protocol, of alerts and rules."""

from guard import PROMETHEUS, PROTOCOL, RULES, Guard

GUARDS = (
    Guard(
        "a stream decodes to no more than was promised",
        f"{PROTOCOL}/codec/history.py",
        "            if self._sink.came > promised:\n",
        "            if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "a stream's window is no larger than was announced",
        f"{PROTOCOL}/codec/history.py",
        "        if window > self._window_size:\n",
        "        if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "a stream's frame is never ended",
        f"{PROTOCOL}/codec/history.py",
        "        if last or kind == _RESERVED:\n",
        "        if False:\n",
        ("tests/unit/test_history.py",),
    ),
    Guard(
        "an epoch that is over is refused",
        f"{PROTOCOL}/session/tables.py",
        "    if theirs != ours:\n",
        "    if False:\n",
        ("tests/unit/test_session.py",),
    ),
    Guard(
        "a record number is used once",
        f"{PROTOCOL}/records.py",
        "        direction.sequence += 1\n        header = ",
        "        header = ",
        ("tests/unit/test_records.py",),
    ),
    Guard(
        "credit is held to",
        f"{PROTOCOL}/session/receiver.py",
        "        if self.outstanding + message.length > self.credit:\n",
        "        if False:\n",
        ("tests/unit/test_session.py",),
    ),
    Guard(
        "a link that may carry nothing is not used without end",
        f"{PROMETHEUS}/flatship-rules.yml",
        "(flatship_sender_link_limit_bytes_per_second) > 0)",
        "(flatship_sender_link_limit_bytes_per_second))",
        (RULES,),
    ),
    Guard(
        "a disk at its end does not stall",
        f"{PROMETHEUS}/flatship-alerts.yml",
        '(flatship_sender_transfer_state{state=~"waiting|opening|sending|proving"} == 1)',
        "flatship_sender_transfer_state",
        (RULES,),
    ),
)
