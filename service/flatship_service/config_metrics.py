"""What both daemons export of their configuration."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


class ConfigMetrics:
    """Whether the configuration could be read, and when the one in force was.

    Args:
        registry: Where they are exported.
        prefix: What their names begin with.
        wall: Seconds since 1970.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, wall: Callable[[], float]) -> None:
        self._good = Gauge(
            f"{prefix}config_last_reload_successful",
            "1 if the configuration was read last time.",
            registry=registry,
        )
        self._time = Gauge(
            f"{prefix}config_last_reload_timestamp_seconds",
            "When the configuration in force was read, since 1970.",
            registry=registry,
        )
        self._wall = wall
        self.read(True)

    def read(self, successful: bool) -> None:
        """Say how it went to read it: now, or again."""
        self._good.set(successful)
        if successful:
            self._time.set(self._wall())
