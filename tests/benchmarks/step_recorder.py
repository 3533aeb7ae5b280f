"""Changes a link's rate at its times, and looks at the transfer over it ten times a second."""

import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.processes import BenchmarkError
from benchmarks.settling import Sample, Step
from benchmarks.shaped_link import ShapedLink

_INTERVAL = 0.1  # seconds between two looks
_SCRAPE_TIMEOUT = 2.0  # seconds
_LEVEL = re.compile(r"^flatship_sender_compression_level(?:\{.*\})? (\S+)$", re.M)
_READ = re.compile(r"^flatship_sender_read_bytes_total(?:\{.*\})? (\S+)$", re.M)
# Whatever a sender says of what waits in it, under whatever name.
_QUEUE = re.compile(
    r"^flatship_sender_(\w*(?:queue|in_flight|waiting)\w*(?<!_bucket)(?:\{.*\})?) (\S+)$", re.M
)


@contextmanager
def recording(link: ShapedLink, steps: Sequence[Step], metrics: str) -> Iterator[list[Sample]]:
    """Run ``steps`` from now on, and give the samples, which grow until the block ends.

    Args:
        link: Has the first step's rate already.
        steps: The link's rates.
        metrics: Where the sender serves its metrics, as HOST:PORT.

    Raises:
        BenchmarkError: The link could not be reshaped or read; at the end of the block.
    """
    samples: list[Sample] = []
    ended = threading.Event()
    failures: list[BenchmarkError] = []

    def watch() -> None:
        try:
            _watch(link, steps, metrics, samples, ended)
        except BenchmarkError as error:
            failures.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


def _watch(
    link: ShapedLink,
    steps: Sequence[Step],
    metrics: str,
    samples: list[Sample],
    ended: threading.Event,
) -> None:
    started = time.monotonic()
    before = link.counted().there
    turns = iter(steps)
    due = next(turns).seconds
    page = ""
    while not ended.wait(_INTERVAL):
        at = time.monotonic() - started
        if at >= due and (step := next(turns, None)):
            link.shape(step.rate)
            due += step.seconds
        page = _scraped(metrics) or page
        wire = link.counted()
        samples.append(sample(page, at, wire.there - before, wire.waiting))


def sample(page: str, at: float, wire: int, waiting: int) -> Sample:
    """What a page of the sender's metrics says, beside what the link says."""
    level = _LEVEL.search(page)
    read = _READ.search(page)
    return Sample(
        at=at,
        wire=wire,
        read=int(float(read[1])) if read else 0,
        level=int(float(level[1])) if level else None,
        waiting=waiting,
        queues=tuple((found[1], float(found[2])) for found in _QUEUE.finditer(page)),
    )


def _scraped(metrics: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=_SCRAPE_TIMEOUT) as page:
            content: bytes = page.read()
            return content.decode()
    except (urllib.error.URLError, OSError):  # it does not serve yet, or no longer
        return ""
