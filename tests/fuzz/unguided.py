"""Fuzzing where there is no coverage to go by: the mutator, with another seed each time."""

import hashlib
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from fuzz import harness
from fuzz.record import Outcome
from fuzz.target import Target

BATCH: Final = 1000  # inputs between two looks at the clock


def fuzz(target: Target, folder: Path, seconds: int, inputs: int) -> Outcome:
    """Give ``target`` inputs for so long, or so many (0: any number); ``folder`` takes a crash."""
    source = iter(harness.mutator(target, time.time_ns()))
    outcome = Outcome()
    started = time.monotonic()
    try:
        for size in _batches(inputs):
            outcome.inputs += harness.give_all(target, islice(source, size)).inputs
            if time.monotonic() - started >= seconds:
                break
    except harness.Broken as broken:
        crashes = folder / "crashes"
        crashes.mkdir(parents=True, exist_ok=True)
        path = crashes / f"crash-{hashlib.sha1(broken.data).hexdigest()}"
        path.write_bytes(broken.data)
        outcome.crash = str(path)
    outcome.seconds = time.monotonic() - started
    return outcome


def _batches(inputs: int) -> Iterator[int]:
    left = inputs
    while left > 0 or not inputs:
        yield min(BATCH, left) if inputs else BATCH
        left -= BATCH
