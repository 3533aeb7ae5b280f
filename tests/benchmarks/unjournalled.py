"""flatship-receiver without its record of chunks: what that record costs shows beside the real one.

    python -m benchmarks.unjournalled serve ...

Nothing that it receives could be resumed or proven; for the data path's benchmark only.
"""

from collections.abc import Iterable

from flatship_receiver.cli import main
from flatship_receiver.journal import Journal


def hold_nothing(
    self: Journal,
    uuid: bytes,
    runs: Iterable[tuple[int, int, bytes | None]],
) -> None:
    """Stands for ``Journal.hold``."""
    del self, uuid, runs


if __name__ == "__main__":
    # For this process only; a switch in the receiver itself would be one too many.
    Journal.hold = hold_nothing  # type: ignore[method-assign]
    main()
