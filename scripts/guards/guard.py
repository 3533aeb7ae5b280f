"""What a guard is, and the places and tests that the lists name."""

from dataclasses import dataclass

TIMEOUT = 150.0  # seconds; without a guard a test may also wait in vain
LONG = 600.0  # seconds for tests that take minutes where no guard is missing

RESUME = "tests/simulation/test_resume.py"
DELTAS = "tests/simulation/test_deltas.py"
TRANSFERS = "tests/simulation/test_in_process_transfers.py"
STORE = "tests/unit/test_local_datastore.py"
IMAGES = "tests/unit/test_image_sources.py"
PROOF = "tests/unit/test_proof.py"
PACING = "tests/unit/test_pacing.py"
THROTTLE = "tests/unit/test_throttle.py"
SCHEDULE = "tests/unit/test_schedule.py"
CONTROL = "tests/unit/test_control_server.py"
RULES = "tests/unit/test_rules.py"
SCHEDULES = "tests/simulation/test_schedules.py"
POWER_CUTS = "tests/crash/test_power_loss.py"  # which takes root


@dataclass(frozen=True, slots=True)
class Guard:
    """A piece of code, what stands in its place without it, and the tests that must miss it."""

    name: str
    file: str
    code: str
    without: str
    tests: tuple[str, ...]
    timeout: float = TIMEOUT


RECEIVER = "receiver/flatship_receiver"
SENDER = "sender/flatship_sender"
PROTOCOL = "protocol/flatship_protocol"
SERVICE = "service/flatship_service"
PROMETHEUS = "deploy/prometheus"
PAGE = "service/flatship_service/page"
