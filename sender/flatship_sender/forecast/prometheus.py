"""Asks a Prometheus what the transfers so far were like."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from flatship_protocol.errors import TransferError
from flatship_sender.forecast.fleet import Recorded

TIMEOUT: Final = 10.0  # seconds for each question
MAX_ANSWER: Final = 4 << 20  # bytes
SPAN: Final = "7d"  # of the past that is looked at
STEP: Final = "30s"
BUSY: Final = 0.05  # of the fastest; with less on the wire a sender was not at it


class PrometheusError(TransferError):
    """A Prometheus did not say what was asked; the message says why and what to do."""

    exit_code = 5


class Prometheus:
    """The HTTP API of one.

    Args:
        url: Of its front page, such as ``http://prometheus:9090``.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PrometheusError(
                f"{url} is no address of a Prometheus: expected one such as http://prometheus:9090"
            )
        self._url = url.rstrip("/")

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The series that an expression has now: labels and value; what is no number is left out.

        Raises:
            PrometheusError: Nobody answers there, or it is no Prometheus, or refuses.
        """
        query = urllib.parse.urlencode({"query": expression})
        address = f"{self._url}/api/v1/query?{query}"
        try:
            # The scheme was looked at.
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310
                text = answer.read(MAX_ANSWER + 1)
        except urllib.error.HTTPError as error:
            raise PrometheusError(
                f"{self._url} answers {error.code} {error.reason} where a Prometheus would answer"
                " a query; is it one, and is that its address?"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PrometheusError(
                f"{self._url} cannot be asked: {reason}; is Prometheus running there?"
            ) from error
        if len(text) > MAX_ANSWER:
            raise PrometheusError(f"{self._url} answers with more than {MAX_ANSWER} bytes")
        try:
            return _series(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrometheusError(
                f"{self._url} does not answer as a Prometheus does; is that its address?"
            ) from error

    def recorded(self, receiver: str) -> Recorded:
        """What transfers to a receiver were like in the last week, and its datastores are now.

        Raises:
            PrometheusError: As ``ask``; or nothing of it is recorded.
        """
        to = f'receiver="{_escaped(receiver)}"'
        rate = f"sum(rate(flatship_sender_wire_bytes_total{{{to}}}[1m]))"
        # In short steps, and of those only the ones in which something was sent.
        fastest = self._number(f"max_over_time({rate}[{SPAN}:{STEP}])")
        busy = f"({rate} > {(fastest or 0.0) * BUSY})[{SPAN}:{STEP}]"
        usual = self._number(f"quantile_over_time(0.5, {busy})")
        slow = self._number(f"quantile_over_time(0.1, {busy})")
        covered = self._number(
            f"sum(increase(flatship_sender_read_bytes_total[{SPAN}]))"
            f' + sum(increase(flatship_sender_skipped_bytes_total{{method="hole"}}[{SPAN}]))'
        )
        wire = self._number(f"sum(increase(flatship_sender_wire_bytes_total[{SPAN}]))")
        if not fastest or not usual or not slow or not covered or wire is None:
            raise PrometheusError(
                f"{self._url} has recorded no transfer to {receiver} in the last {SPAN}: have it"
                " scrape the senders (deploy/README.md), and send a first machine"
            )
        written = self._number(f"sum(increase(flatship_receiver_written_bytes_total[{SPAN}]))")
        share = wire / covered
        left = self._number("sum(disk:flatship_sender_remaining_bytes:unfinished)") or 0.0
        return Recorded(
            usual=usual,
            slow=slow,
            wire_share=share,
            written_share=min(1.0, written / covered) if written else 1.0,
            free=self._by_datastore(
                "min by (datastore) (flatship_receiver_datastore_free_bytes"
                " - flatship_receiver_datastore_reserved_bytes)"
            ),
            filling={
                name: max(0.0, rate)
                for name, rate in self._by_datastore(
                    "max by (datastore) (-deriv(flatship_receiver_datastore_free_bytes[6h])"
                    " - on (job, instance, datastore)"
                    " rate(flatship_receiver_written_bytes_total[6h]))"
                ).items()
            },
            left=left * share,
        )

    def _number(self, expression: str) -> float | None:
        series = self.ask(expression)
        return series[0][1] if series else None

    def _by_datastore(self, expression: str) -> dict[str, float]:
        return {
            labels["datastore"]: value
            for labels, value in self.ask(expression)
            if "datastore" in labels
        }


def _series(answer: Any) -> list[tuple[dict[str, str], float]]:
    if answer["status"] != "success" or answer["data"]["resultType"] != "vector":
        raise ValueError(answer["status"])
    found = [(dict(one["metric"]), float(one["value"][1])) for one in answer["data"]["result"]]
    return [(labels, value) for labels, value in found if math.isfinite(value)]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
