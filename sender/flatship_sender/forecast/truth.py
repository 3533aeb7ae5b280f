"""A forecast beside what came of it. Pure."""

import msgspec

from flatship_service.units import format_duration


class Quantiles(msgspec.Struct, frozen=True):
    """Half of the time it is less than ``p50``, nine times of ten less than ``p90``."""

    p50: float
    p90: float


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A forecast beside what the transfer took; ``ratio`` is the truth in terms of ``p50``."""

    made: float
    seconds: Quantiles
    wire: Quantiles
    took: float
    sent: int
    ratio: float
    wire_ratio: float
    within_p90: bool


def hindsight(judged: Judged) -> str:
    """What to say of a forecast once the transfer is over."""
    side = "within" if judged.within_p90 else "beyond"
    return (
        f"forecast were {format_duration(judged.seconds.p50)}, at most"
        f" {format_duration(judged.seconds.p90)}; it took {format_duration(judged.took)}, {side}"
        f" that, and {judged.wire_ratio:.2f} of the bytes"
    )
