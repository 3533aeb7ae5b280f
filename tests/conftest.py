"""What holds in every test."""

from collections import Counter
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol import records


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
