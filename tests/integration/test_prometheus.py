"""Rules and dashboard against a real Prometheus that scrapes both ends of a real transfer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dashboards
import pytest
from dashboards import Query
from disks import MIB, prose, random_bytes
from processes import SENDER, Running, run_program, wait_until
from test_metrics import sender_metrics_url
from watching import Prometheus

from conftest import serving_pair

STRIPES = 80
STRIPE = 8 * MIB  # holes for one half, one MiB of zeros, and three of data
LIMIT = 2_000_000  # bytes a second: it takes a minute, and is ended with the tests
PATIENCE = 30.0  # seconds until an expression has a value


def make_stripes(path: Path) -> Path:
    """A disk that has everything anywhere: holes, zeros, and data that halves when compressed."""
    with path.open("wb") as file:
        file.truncate(STRIPES * STRIPE)
        for number in range(STRIPES):
            file.seek(number * STRIPE)
            file.write(bytes(MIB))
            for part in range(3):
                seed = number * 3 + part
                file.write(prose(seed, MIB // 2) + random_bytes(seed, MIB // 2))
    return path


@dataclass
class Watched:
    """A transfer, and who watches it."""

    prometheus: Prometheus
    sending: Running
    chosen: dict[str, str]  # values of the dashboard's variables

    def has_data(self, expression: str) -> bool:
        return bool(self.prometheus.values(expression))

    def value(self, expression: str) -> float:
        return self.prometheus.values(expression)[-1]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A slow transfer, watched from its beginning."""
    folder = tmp_path_factory.mktemp("watched")
    source = make_stripes(folder / "disk.raw")
    prometheus = Prometheus(folder)
    try:
        with serving_pair(folder / "pair") as pair:
            prometheus.watch("receiver", pair.receiver.metrics_url)
            options = ("--limit", str(LIMIT), "--http", "127.0.0.1:0")
            sending = pair.start_send(source, vm="web01", options=options)
            prometheus.watch("sender", sender_metrics_url(sending), wave="first")
            yield Watched(prometheus, sending, choose_all(prometheus))
            assert "Traceback" not in sending.stderr
    finally:
        prometheus.close()


def choose_all(prometheus: Prometheus) -> dict[str, str]:
    """Choose every value that each variable offers, once it offers any."""
    chosen: dict[str, str] = {}
    for variable in dashboards.variables():
        selector = dashboards.fill_in(variable.selector, chosen)

        def offered(selector: str = selector, label: str = variable.label) -> list[str]:
            return prometheus.label_values(selector, label)

        wait_until(offered, f"the variable {variable.name} offers something")
        chosen[variable.name] = dashboards.alternatives(offered())
    return chosen


@pytest.mark.parametrize("query", list(dashboards.queries()), ids=str)
def test_each_expression_of_the_dashboard_returns_data_that_its_legend_names(
    watched: Watched, query: Query
) -> None:
    expression = dashboards.fill_in(query.expression, watched.chosen)
    wait_until(lambda: watched.has_data(expression), expression, timeout=PATIENCE)
    named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    for series in watched.prometheus.series(expression):
        assert named <= set(series["metric"]), "the legend names labels that are not there"


def test_each_recording_rule_returns_data(watched: Watched) -> None:
    rules = watched.prometheus.rules("recording")
    assert len(rules) > 10
    for rule in rules:
        wait_until(lambda name=rule["name"]: watched.has_data(name), rule["name"], PATIENCE)
        assert (rule["health"], rule.get("lastError")) == ("ok", None)


def test_each_alert_looks_at_series_that_are_there_and_none_fires_without_reason(
    watched: Watched,
) -> None:
    wait_until(
        lambda: all(rule["health"] == "ok" for rule in watched.prometheus.rules("alerting")),
        "alerts are evaluated",
    )
    for rule in watched.prometheus.rules("alerting"):
        names = set(re.findall(r"\b(?:up|(?:\w+:)?flatship_\w+(?::\w+)?)\b", rule["query"]))
        assert names, rule
        for name in names:
            wait_until(lambda name=name: watched.has_data(name), name, PATIENCE)
        assert rule["state"] != "firing", rule


def test_what_the_rules_record_is_what_happens(watched: Watched) -> None:
    def about(expression: str, low: float, high: float) -> None:
        wait_until(lambda: watched.has_data(expression), expression, timeout=PATIENCE)
        wait_until(
            lambda: low <= watched.value(expression) <= high, f"{expression} in {low}..{high}", 20
        )

    # A window of 5 minutes that began seconds ago is mostly empty.
    about("instance:flatship_sender_link_utilisation:ratio_rate5m", 0.01, 1.1)
    about("rate(flatship_sender_wire_bytes_total[10s])", 0.5 * LIMIT, 1.5 * LIMIT)
    about("instance:flatship_sender_compression:ratio_rate5m", 1.1, 2.1)
    about("instance:flatship_sender_sparse:ratio_rate5m", 0.45, 0.75)  # 5 of 8
    about("datastore:flatship_receiver_sparse:ratio_rate5m", 0.45, 0.75)
    assert not watched.sending.ended, "that was not during the transfer"


def test_a_wave_is_planned_from_what_is_recorded(watched: Watched, tmp_path: Path) -> None:
    wave = tmp_path / "wave"
    wave.write_text("web02=100MiB  # the next one\nweb03=200MiB\n")
    asked = ("plan", "--from", watched.prometheus.url, "--to", "esx", "--wave", wave, "--json")
    plan: dict[str, Any] = {}

    def planned() -> bool:
        run = run_program(*SENDER, *asked)
        if run.exit_code == 0:
            plan.update(run.json)
        return bool(plan)

    wait_until(planned, "a transfer is recorded", timeout=2 * PATIENCE)
    # A window that began seconds ago is mostly empty.
    assert 0 < plan["slow_rate"] <= plan["rate"] <= 1.5 * LIMIT
    assert plan["size"] == 300 * MIB
    assert 0.1 < plan["wire"] / plan["size"] < 0.5  # 3 of 8 are data, and halve
    first, second = plan["arrivals"]
    assert plan["begins"] < first["p50"] < second["p50"] == plan["p50"] <= plan["p90"]
    assert plan["full"] == plan["unknown"] == []
