"""Guards of the protocol, of what both daemons are as services, of alerts and rules."""

from guard import PROMETHEUS, PROTOCOL, RECEIVER, RULES, SERVICE, Guard

GUARDS = (
    Guard(
        "a configuration is judged whole before anything of it counts",
        f"{RECEIVER}/reconfigure.py",
        "        held_to, waiting = succeeding(self.endpoint.protection, offered)\n",
        "        held_to, waiting = succeeding(self.endpoint.protection, offered)\n"
        "        self.endpoint.protection = held_to\n",
        ("tests/unit/test_reload.py",),
    ),
    Guard(
        "a configuration that cannot be used is not in force",
        f"{SERVICE}/reload.py",
        "            self.told(False)\n            return False\n",
        "            self.told(False)\n",
        ("tests/unit/test_reload.py",),
    ),
    Guard(
        "files with secrets that others can read are refused",
        f"{SERVICE}/secret_files.py",
        "        if status.st_mode & (",
        "        if 0 & (",
        ("tests/unit/test_keys.py",),
    ),
    Guard(
        "users files and TLS keys that everybody can read are refused",
        f"{SERVICE}/secret_files.py",
        "_GROUP_WRITES_AND_OTHERS: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO\n",
        "_GROUP_WRITES_AND_OTHERS: Final = stat.S_IWGRP | stat.S_IXGRP\n",
        ("tests/unit/test_passwords.py", "tests/unit/test_http_access.py"),
    ),
    Guard(
        "a name that nobody has costs what a wrong password does",
        f"{SERVICE}/passwords.py",
        "        expected = known or self._nobody\n",
        "        expected = known or self._nobody\n"
        "        if known is None:\n            return False\n",
        ("tests/unit/test_passwords.py",),
    ),
    Guard(
        "passwords are compared in constant time",
        f"{SERVICE}/passwords.py",
        "        right = hmac.compare_digest(expected.derive(password), expected.digest)\n",
        "        right = expected.derive(password) == expected.digest\n",
        ("tests/unit/test_passwords.py",),
    ),
    Guard(
        "a login that failed is not answered",
        f"{SERVICE}/http_login.py",
        "        if not right:\n            raise LoginRefused(PASSWORD)\n",
        "        del right\n",
        ("tests/unit/test_http_access.py",),
    ),
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
