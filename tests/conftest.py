"""What holds in every test, and which ones begin first."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol import records

LONGEST: Final = (
    "lab/test_volumes.py",
    "simulation/test_schedules.py",
    "packages/test_debian_packages.py",
    "integration/test_series.py",
    "crash/test_power_loss.py",
    "packages/test_ansible.py",
    "integration/test_half_open.py",
    "integration/test_limited_links.py",
    "fuzz/test_decoders.py",
)
_RANKS: Final = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no worker is left with one in the end; see Makefile."""
    items.sort(key=lambda item: _RANKS.get(item.path, len(_RANKS)))


@pytest.fixture(autouse=True)
def _no_nonce_seals_twice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which the record layer seals twice under one (key, nonce) pair.

    A test that means to make the same record again takes another key.
    """
    sealed: Counter[tuple[bytes, bytes]] = Counter()

    class RecordingAESGCM:
        def __init__(self, key: bytes) -> None:
            self._key = key
            self._aead = AESGCM(key)
            self.decrypt_into = self._aead.decrypt_into

        def encrypt_into(
            self, nonce: bytes, data: memoryview, associated: bytes, out: memoryview
        ) -> int:
            sealed[self._key, nonce] += 1
            return self._aead.encrypt_into(nonce, data, associated, out)

    monkeypatch.setattr(records, "AESGCM", RecordingAESGCM)
    yield
    repeated = [nonce.hex() for (_, nonce), times in sealed.items() if times > 1]
    assert not repeated, f"sealed more than once under one key: nonces {repeated[:5]}"
