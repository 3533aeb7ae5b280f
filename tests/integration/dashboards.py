"""The Grafana dashboard of deploy/grafana, as far as tests look into it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = Path(__file__).parents[2] / "deploy" / "grafana" / "flatship.json"
GLOBAL_VARIABLES: Final = {
    "__rate_interval": "1m",
    "__range": "5m",
}  # windows that Grafana fills in


def load() -> dict[str, Any]:
    """All of it."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels() -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in load()["panels"] if panel["type"] != "row"]


@dataclass(frozen=True)
class Query:
    """One expression of a panel, with its variables not filled in."""

    panel: str
    ref: str
    expression: str
    legend: str

    def __str__(self) -> str:
        return f"{self.panel} {self.ref}"


def queries() -> Iterator[Query]:
    """Each expression of each panel, in the order of the panels."""
    for panel in panels():
        for target in panel["targets"]:
            yield Query(
                panel["title"], target["refId"], target["expr"], target.get("legendFormat", "")
            )


@dataclass(frozen=True)
class Variable:
    """A variable that offers the values which a label has in some series."""

    name: str
    selector: str
    label: str


def variables() -> Iterator[Variable]:
    """Those that are asked of Prometheus, in their order: later ones may use earlier ones."""
    for variable in load()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield Variable(variable["name"], found[1], found[2])


def fill_in(expression: str, values: Mapping[str, str]) -> str:
    """An expression with its variables replaced, as Grafana does it; each must have a value."""
    known = {**GLOBAL_VARIABLES, **values}
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], expression)


def alternatives(values: list[str]) -> str:
    """What Grafana puts in the place of a variable with these values, inside a quoted regex."""
    return "|".join(re.escape(value).replace("\\", "\\\\") for value in values)
