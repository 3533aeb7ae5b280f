"""The Grafana dashboard: well formed, of this Prometheus alone, and explained in the guide."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import dashboards
import pytest
from dashboards import DASHBOARD

DEPLOY = Path(__file__).parents[2] / "deploy"
COLUMNS = 24  # of Grafana's grid
DATA_SOURCE = {"type": "prometheus", "uid": "${prometheus}"}
UNITS = {"Bps", "bytes", "percentunit", "s", "short"}
TYPES = {"row", "stat", "state-timeline", "table", "timeseries"}


def everywhere(node: Any, key: str) -> list[Any]:
    """Whatever bears a key, at any depth."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = [node[key]] if isinstance(node, dict) and key in node else []
    return found + [value for child in children for value in everywhere(child, key)]


def test_it_can_be_imported_anywhere() -> None:
    board = dashboards.load()
    assert board["id"] is None  # Grafana numbers it
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert "__inputs" not in board
    assert all(source == DATA_SOURCE for source in everywhere(board, "datasource"))
    assert "://" not in DASHBOARD.read_text()


def test_panels_have_numbers_of_their_own_and_places_that_do_not_overlap() -> None:
    board = dashboards.load()
    assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        taken.update(
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        )
    assert max(taken.values()) == 1
    rows = [place["gridPos"]["y"] for place in board["panels"]]
    assert all(one <= next_ for one, next_ in pairwise(rows))


@pytest.mark.parametrize("panel", dashboards.panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_answers_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["type"] in TYPES
    assert panel["description"].endswith(".")
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs)) > 0
    config = panel["fieldConfig"]
    units = [config["defaults"].get("unit")] if panel["type"] != "table" else []
    units += [
        property_["value"]
        for override in config["overrides"]
        for property_ in override["properties"]
        if property_["id"] == "unit"
    ]
    assert set(units) <= UNITS


def test_each_variable_is_used_and_each_one_used_is_there() -> None:
    board = dashboards.load()
    there = {variable["name"] for variable in board["templating"]["list"]}
    texts = [query.expression for query in dashboards.queries()]
    texts += [variable.selector for variable in dashboards.variables()]
    used = {name for text in texts for name in re.findall(r"\$(\w+)", text)}
    assert used - set(dashboards.GLOBAL_VARIABLES) == there - {"prometheus"}


def test_the_guide_has_a_row_for_each_panel_with_its_question() -> None:
    listed = re.findall(r"^\| \*\*(.+?)\*\* \| .+ \|$", (DEPLOY / "README.md").read_text(), re.M)
    assert listed == [panel["title"] for panel in dashboards.panels()]


def test_grafana_is_told_the_interval_at_which_prometheus_scrapes() -> None:
    scrape = re.search(
        r"^  scrape_interval: (\w+)$", (DEPLOY / "prometheus" / "prometheus.yml").read_text(), re.M
    )
    assert scrape
    source = (DEPLOY / "grafana" / "provisioning" / "datasources" / "flatship.yml").read_text()
    assert f"timeInterval: {scrape[1]}\n" in source
