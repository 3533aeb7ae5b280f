"""A transfer over a link whose rate changes, as a picture: rate, level and queue over time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.settling import Sample, Step, rates
from benchmarks.shaped_link import MBIT


def plot(samples: Sequence[Sample], steps: Sequence[Step], path: Path) -> None:
    """Write the picture as PNG to ``path``."""
    mpl.use("Agg")  # there is no screen
    from matplotlib import pyplot  # takes its backend when it is imported

    figure, (rate, level, queue) = pyplot.subplots(3, 1, sharex=True, figsize=(10, 8))
    at = [sample.at for sample in samples]
    begins = [sum(step.seconds for step in steps[:number]) for number in range(len(steps))]
    rate.step(
        [*begins, max(begins[-1], at[-1])],
        [step.rate / MBIT for step in (*steps, steps[-1])],
        where="post",
        color="0.6",
        label="link",
    )
    rate.plot(
        [when for when, _, _ in rates(samples)],
        [wire / MBIT for _, wire, _ in rates(samples)],
        label="wire, over 1 s",
    )
    rate.set(yscale="log", ylabel="Mbit/s")
    level.plot(at, [sample.level for sample in samples], drawstyle="steps-post")
    level.set(ylabel="level; none: raw")
    queue.plot(at, [sample.waiting / 1e3 for sample in samples], label="link's queue, kB")
    for name in dict(samples[-1].queues):
        values = [dict(sample.queues).get(name, 0.0) for sample in samples]
        scale = 1e6 if "bytes" in name else 1
        queue.plot(at, [v / scale for v in values], label=f"{name}{', MB' if scale > 1 else ''}")
    queue.set(xlabel="seconds", ylabel="waiting")
    for axes in (rate, queue):
        axes.legend(loc="best", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
