"""``plan``: looks, asks and measures, one after the other, for a dozen seconds in all."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Final

from flatship_protocol.messages import OpenDisk
from flatship_sender.config import Config, configure
from flatship_sender.connecting import Credentials
from flatship_sender.convergence import Range, project
from flatship_sender.downtimes import Disk, Downtimes
from flatship_sender.forecast.foresee import Machine
from flatship_sender.forecast.record import Forecast, Forecasts
from flatship_sender.forecast.report import Findings, Looked, PlanReport, report
from flatship_sender.forecast.sample import Sample, sample
from flatship_sender.forecast.visit import Visit, visit
from flatship_sender.job import FIRST_PASS
from flatship_sender.limits import Limiter, worthwhile
from flatship_sender.order import Order, check_names, disk_names
from flatship_sender.processor import ProcessorWatch
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.shares import Table
from flatship_sender.sources.base import BlockSource
from flatship_sender.throttle import Throttle
from flatship_service.cli import tell
from flatship_service.workers import Workers

SAMPLING: Final = 6.0  # seconds for all disks together; each has one chunk read at least


def make_plan(order: Order, sources: Sequence[BlockSource], rate: float | None) -> PlanReport:
    """Foresee what an order will take, and note it for the transfer that may follow.

    Args:
        order: What ``send`` would be asked for.
        sources: Its disks, open; they stay so.
        rate: The link's, in bytes a second on the wire, instead of measuring it.

    Raises:
        NameRefused: VM or datastore cannot be called that.
        SourceReadError: A source failed.
        ConfigError: The configuration is wrong.
        TransferError: The receiver cannot be had.
    """
    check_names(order)
    config = configure(order.config)
    samples, cores = _look(sources)
    paid_visit, limit = asyncio.run(_call(order, config, sources, probing=rate is None))
    forecasts = Forecasts(order.state, _warn)
    of_time, of_size = forecasts.corrections(order.receiver.name)
    targets = [f"{order.target.vm}/{name}.vmdk" for name in _names(order)]
    disks = [Disk(source.identity.hex(), source.size) for source in sources]
    answer = report(
        Findings(
            order.receiver.name,
            order.target.vm,
            [
                Looked(source.name, target, seen, said)
                for source, target, seen, said in zip(
                    sources, targets, samples, paid_visit.answers, strict=True
                )
            ],
            paid_visit,
            Machine(_workers(), cores, paid_visit.streams, order.options.compression),
            rate,
            limit,
            order.target.provisioning,
            of_time,
            of_size,
            _projected(order, disks),
        )
    )
    if answer.seconds is not None and answer.raw_seconds is not None:
        forecast = Forecast(
            made=time.time(),
            disks=disks,
            seconds=answer.seconds,
            wire=answer.wire,
            raw_seconds=answer.raw_seconds,
            raw_wire=answer.raw_wire,
            limit=answer.link.limit,
        )
        forecasts.keep(order.receiver.name, order.target.vm, forecast)
    return answer


def _look(sources: Sequence[BlockSource]) -> tuple[list[Sample], float]:
    """Sample all disks; also how many cores this host had for us meanwhile."""
    processor = ProcessorWatch()
    until = time.monotonic() + SAMPLING
    samples = []
    for number, source in enumerate(sources):
        left = max(0.0, until - time.monotonic())
        samples.append(sample(source, left / (len(sources) - number)))
    return samples, min(float(_workers()), max(0.25, processor.look().cores))


async def _call(
    order: Order, config: Config, sources: Sequence[BlockSource], *, probing: bool
) -> tuple[Visit, float]:
    """Call on the receiver, within the limits; also which limit that was."""
    progress = TransferProgress(
        order.receiver.name,
        order.target.vm,
        [DiskProgress(source.name, "", source.size) for source in sources],
    )
    throttle = Throttle()
    workers, table = Workers(1, "flatship-limits"), Table(order.state)
    try:
        limiter = Limiter(
            config,
            lambda: config,
            throttle,
            progress,
            table,
            workers,
            command=order.options.limit or inf,
        )
        await limiter.look()
        kept = asyncio.create_task(limiter.run())
        try:
            found = await visit(
                order.receiver,
                Credentials(order.identity.private, order.receiver.psk),
                [
                    _opening(order, number, name, source)
                    for number, (name, source) in enumerate(
                        zip(_names(order), sources, strict=True)
                    )
                ],
                throttle,
                connections=worthwhile(order.options.connections, limiter.ceiling),
                probing=probing,
                congestion_control=config.congestion_control,
            )
        finally:
            kept.cancel()
            with suppress(asyncio.CancelledError):
                await kept
        return found, limiter.rate
    finally:
        table.close()
        workers.close()


def _opening(order: Order, number: int, name: str, source: BlockSource) -> OpenDisk:
    target = order.target
    return OpenDisk(
        disk=number,
        pass_number=FIRST_PASS,
        size=source.size,
        reserve=0,  # what it takes is compared here, where more is known of it
        source_id=source.identity,
        format=target.format,
        provisioning=target.provisioning,
        adapter=target.adapter,
        hardware_version=target.hardware_version,
        datastore=target.datastore,
        vm=target.vm,
        name=name,
        replace=False,
        live=False,
        dry_run=True,
    )


def _projected(order: Order, disks: Sequence[Disk]) -> Range | None:
    """The downtime as the live passes over these disks foretell it; None without any."""
    passes = Downtimes(order.state, order.receiver.name, order.target.vm, disks, _warn).load()
    if not passes:
        return None
    projection = project(passes, max(0.0, time.time() - passes[-1].began))
    return None if projection is None else projection.downtime


def _names(order: Order) -> list[str]:
    return disk_names(order.target.vm, len(order.sources))


def _workers() -> int:
    return max(2, os.cpu_count() or 1)


def _warn(text: str) -> None:
    tell(f"warning: {text}")
