import pytest

from flatship_protocol.errors import ErrorCode
from flatship_sender.refusals import REFUSALS, NotAuthorised, RefusedByReceiver


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_sentence_and_an_exit_code(code: ErrorCode) -> None:
    error = RefusedByReceiver(code, (5 << 30, 1 << 30))
    assert error.code is code
    assert error.exit_code == REFUSALS[code].exit_code > 0
    assert "{" not in str(error)
    assert not str(error).endswith(".")


def test_numbers_are_sizes_or_an_offset_as_the_code_has_it() -> None:
    full = RefusedByReceiver(ErrorCode.DATASTORE_FULL, (5 << 30, 1 << 30))
    assert "5.0 GiB needed, 1.0 GiB free" in str(full)
    differs = RefusedByReceiver(ErrorCode.PROOF_FAILED, (2097152, 0))
    assert "at byte 2097152" in str(differs)


def test_a_silent_close_is_explained_by_what_was_tried() -> None:
    assert "invite" in str(NotAuthorised("lab", pairing=True))
    assert "join" in str(NotAuthorised("lab", pairing=False))
    assert NotAuthorised("lab", pairing=True).exit_code == 12
