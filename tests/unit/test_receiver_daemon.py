"""The receiver put together."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from flatship_protocol.endpoint import Endpoint
from flatship_receiver import daemon
from flatship_receiver.config import Config
from flatship_service.signals import STOP_SIGNALS

ANYWHERE = Endpoint("127.0.0.1", 0)


def test_whoever_reads_that_it_listens_may_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("state", "ds"):
        (tmp_path / folder).mkdir(mode=0o700)
    config = Config(
        state=tmp_path / "state",
        listen=ANYWHERE,
        http=ANYWHERE,
        datastores={"ds": tmp_path / "ds"},
    )
    monkeypatch.setattr(daemon, "_announce", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    unheard: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGTERM, lambda number, _: unheard.append(number))
    try:
        asyncio.run(asyncio.wait_for(daemon.serve(config, "test", lambda: config), 20))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not unheard
