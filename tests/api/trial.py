"""Schemathesis against a real daemon at its socket."""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sending_daemon import sending_daemon
from unix_relay import relay_to

from flatship_protocol.endpoint import Endpoint
from flatship_sender.receivers import Receiver, Receivers

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
PROGRAM = ROOT / ".cache" / "schemathesis" / "bin" / "schemathesis"  # of scripts/schemathesis-env
DESCRIPTION = ROOT / "sender" / "openapi.json"
# The one ends the daemon, the other lasts as long as a job does: test_control has both.
NOT_TRIED = ("/v1/drain", "/v1/jobs/{id}/changes")


@dataclass(frozen=True)
class Trial:
    """What came of it: what schemathesis and the daemon said, and how many requests were made."""

    exit_code: int
    report: str
    log: str

    @property
    def requests(self) -> int:
        found = re.search(r"^\s+(\d+) generated", self.report, re.MULTILINE)
        return int(found[1]) if found else 0


def try_api(seconds: int, seed: int) -> Trial:
    """Make requests for so long, well formed and not, one after another and in sequences."""
    subprocess.run([ROOT / "scripts" / "schemathesis-env"], check=True, timeout=600)
    with tempfile.TemporaryDirectory(prefix="flatship-api-") as name:
        folder = Path(name)
        state, source = folder / "state", folder / "disk"
        Receivers(state).save(Receiver("esx", Endpoint("127.0.0.1", 1), bytes([7] * 32)))
        source.write_bytes(bytes(1 << 20))
        with sending_daemon(state, folder) as daemon:
            daemon.start()
            with relay_to(state / "control.sock") as port:
                run = _run(port, seconds, seed, source, folder)
            daemon.stop()
            return Trial(run.returncode, run.stdout + run.stderr, daemon.said)


def _run(
    port: int, seconds: int, seed: int, source: Path, folder: Path
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(PROGRAM, "--config-file", FOLDER / "schemathesis.toml", "--no-color"),
            *("run", DESCRIPTION, "--url", f"http://127.0.0.1:{port}"),
            *(word for path in NOT_TRIED for word in ("--exclude-path", path)),
            *("--max-time", str(seconds), "--request-timeout", "10", "--seed", str(seed)),
            *("--generation-database", "none"),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(FOLDER),
            "SCHEMATHESIS_HOOKS": "hooks",
            "FLATSHIP_SOURCE": str(source),
            "FLATSHIP_RECEIVER": "esx",
        },
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
