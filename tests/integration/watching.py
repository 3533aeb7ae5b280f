"""A real Prometheus, as deploy/prometheus configures it, but that it looks every second."""

import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from processes import Running, fetch, wait_until

SHIPPED: Final = Path(__file__).parents[2] / "deploy" / "prometheus"
STEP: Final = 1  # seconds between looks, and between the points of an answer


class Prometheus:
    """Serves on loopback, with all that it keeps below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._configuration = folder / "etc"
        shutil.copytree(SHIPPED, self._configuration)
        self._targets = self._configuration / "targets"
        main = self._configuration / "prometheus.yml"
        text, changed = re.subn("_interval: 15s", f"_interval: {STEP}s", main.read_text())
        assert changed == 2, "the intervals of scrapes and of rules"
        main.write_text(text)
        for file in self._targets.iterdir():
            self._watch(file.name, [])
        self._began = time.time()
        command = ("prometheus", f"--config.file={main}", "--web.listen-address=127.0.0.1:0")
        storage = f"--storage.tsdb.path={folder / 'data'}"
        self._running = Running((*command, storage), folder / "prometheus")
        try:
            wait_until(lambda: self._running.ended or self._address, "Prometheus listens")
            wait_until(lambda: "ready to receive" in self._running.stderr, "Prometheus is ready")
        except BaseException:
            self.close()
            raise

    @property
    def _address(self) -> str:
        found = re.search(r'"Listening on" address=(\S+)', self._running.stderr)
        return found[1] if found else ""

    @property
    def url(self) -> str:
        """Its front page."""
        return f"http://{self._address}"

    def close(self) -> None:
        """End it."""
        self._running.kill()

    def watch(self, kind: str, metrics_url: str, **labels: str) -> None:
        """Scrape a receiver or a sender from now on, with these labels of its target."""
        address = metrics_url.removeprefix("http://").removesuffix("/metrics")
        self._watch(f"flatship-{kind}s.yml", [{"targets": [address], "labels": labels}])

    def _watch(self, file: str, targets: list[dict[str, Any]]) -> None:
        # JSON is YAML. Renamed into place: Prometheus may be reading.
        new = self._targets / f".{file}"
        new.write_text(json.dumps(targets))
        new.rename(self._targets / file)

    def ask(self, path: str, **parameters: object) -> Any:
        """What its HTTP API says; an error fails the test."""
        answer = json.loads(fetch(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self, expression: str) -> list[Any]:
        """All series that an expression has had since Prometheus runs, with their labels."""
        found = self.ask(
            "query_range", query=expression, start=self._began, end=time.time(), step=STEP
        )
        return list(found["result"])

    def values(self, expression: str) -> list[float]:
        """All numbers that an expression has had, in every series, since Prometheus runs."""
        series = self.series(expression)
        numbers = [float(value) for one in series for _, value in one["values"]]
        return [number for number in numbers if math.isfinite(number)]

    def label_values(self, selector: str, label: str) -> list[str]:
        """The values that a label has had."""
        found = self.ask("series", **{"match[]": selector}, start=self._began)
        return sorted({series[label] for series in found if label in series})

    def rules(self, kind: str) -> list[dict[str, Any]]:
        """All rules of a kind, ``alerting`` or ``recording``, as they stand."""
        groups = self.ask("rules")["groups"]
        return [rule for group in groups for rule in group["rules"] if rule["type"] == kind]
