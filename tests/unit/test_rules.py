"""The rules of deploy/prometheus, judged by promtool, and by what both ends really export."""

import re
import subprocess
from pathlib import Path

import pytest

from flatship_protocol.errors import ErrorCode
from flatship_receiver.metrics import (
    AUTH_REASONS,
    REJECT_REASONS,
    ReceiverMetrics,
    SpaceSample,
)
from flatship_sender.metrics import SenderMetrics
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "flatship-rules.yml"
ALERTS = FOLDER / "flatship-alerts.yml"
TESTS = ROOT / "tests" / "rules"

RECEIVER_DISK_STATES = {"receiving", "proving", "complete", "unpublished", "failed"}
KNOWN_VALUES = {
    "flatship_sender_transfer_state": {state.value for state in TransferState},
    "flatship_sender_errors_total": {code.name.lower() for code in ErrorCode},
    "flatship_sender_skipped_bytes_total": {"hole", "zero", "unchanged", "kept"},
    "flatship_receiver_disk_state": RECEIVER_DISK_STATES,
    "flatship_receiver_auth_failures_total": set(AUTH_REASONS),
    "flatship_receiver_records_rejected_total": set(REJECT_REASONS),
}


def promtool(*arguments: str | Path) -> str:
    """What it says; it must be content."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def names_of(kind: str, path: Path) -> list[str]:
    """Names of all rules of a kind in a file that has no others."""
    return re.findall(rf"^ +- {kind}: (\S+)$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("kind", "path"), [("record", RULES), ("alert", ALERTS)])
def test_prometheus_finds_the_rules_that_are_found_here(kind: str, path: Path) -> None:
    found = len(names_of(kind, path))
    assert f"SUCCESS: {found} rules found" in promtool("check", "rules", path)


def test_prometheus_accepts_the_configuration_with_the_rules_and_the_targets() -> None:
    said = promtool("check", "config", FOLDER / "prometheus.yml")
    assert "2 rule files found" in said


@pytest.mark.parametrize("name", ["alerts.yml", "recorded.yml"])
def test_rules_do_what_their_tests_say(name: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS / name)


def groups_of(path: Path) -> dict[str, str]:
    """Each group of a promtool test: its name and its text."""
    _, *groups = re.split(r"^  - name: ", path.read_text(), flags=re.MULTILINE)
    return {group.partition("\n")[0]: group for group in groups}


@pytest.mark.parametrize("alert", names_of("alert", ALERTS))
def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_quiet(alert: str) -> None:
    groups = groups_of(TESTS / "alerts.yml")
    (fires,) = [text for name, text in groups.items() if name.startswith(f"{alert} fires ")]
    assert re.search(
        rf"alertname: {alert}\n +eval_time: \w+\n +exp_alerts:.*\n +- exp_label", fires
    )
    (quiet,) = [text for name, text in groups.items() if name.startswith(f"{alert} is quiet ")]
    assert re.search(rf"alertname: {alert}, eval_time: \w+, exp_alerts: \[\]", quiet)
    assert "exp_labels" not in quiet


@pytest.mark.parametrize("rule", names_of("record", RULES))
def test_each_recording_rule_has_a_test(rule: str) -> None:
    text = (TESTS / "recorded.yml").read_text()
    assert re.search(rf"- expr: (round\()?{re.escape(rule)}(\)|, 0.001\))?\n", text)


def test_each_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do() -> None:
    _, *rules = re.split(r"^      - alert: ", ALERTS.read_text(), flags=re.MULTILINE)
    assert len(rules) == len(names_of("alert", ALERTS))
    for rule in rules:
        assert re.search(r"severity: (warning|critical)\n", rule), rule
        for annotation in ("summary", "action"):
            assert f"          {annotation}: " in rule, rule


def exported() -> set[str]:
    """Names of all series that either end exports."""
    sender, receiver = SenderMetrics("1"), ReceiverMetrics("1")
    sender.watch(TransferProgress("r", "vm", [DiskProgress("s", "t", 512)]))
    receiver.datastore("d", lambda: SpaceSample(1, 1, 0))
    rendered = (sender.render()[0] + receiver.render()[0]).decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", rendered, re.MULTILINE):
        endings = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {name + ending for ending in endings}
    return names


@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_rules_speak_of_metrics_and_values_that_exist(path: Path) -> None:
    text = path.read_text()
    expressions = re.sub(
        r"^ *(#|-? *record:|annotations:|action:|summary:).*$", "", text, flags=re.M
    )
    recorded = set(names_of("record", RULES))
    names = set(re.findall(r"\b(?:\w+:)?flatship_(?:sender|receiver)_\w+(?::\w+)?", expressions))
    assert names
    assert names <= exported() | recorded
    for name, _, values in re.findall(r'(\w+)\{(\w+)[=!]~?"([^"]+)"\}', expressions):
        if name != "up":
            assert set(values.split("|")) <= KNOWN_VALUES[name], name
