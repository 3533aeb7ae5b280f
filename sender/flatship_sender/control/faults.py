"""What the control interface answers instead of what was asked for. Pure.

Each answer has a status for programs that speak HTTP, a code for those that decide, a
sentence for people, and the exit code that a command ends with.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from flatship_service.errors import OperatorError


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, and what to do."""

    code: str
    message: str
    exit_code: int


class FaultAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    error: Fault


class Refused(OperatorError):
    """A request that gets a fault for its answer.

    Args:
        status: Of HTTP.
        code: For programs; one of ``CODES``.
        message: For people: what is wrong, what was expected, what to do.
        exit_code: What a command that asked ends with.
    """

    def __init__(self, status: int, code: str, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.status = status
        self.fault = Fault(code=code, message=message, exit_code=exit_code)

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # as the answer says, not the class
        """What the command ends with."""
        return self.fault.exit_code


# An error for operators says by its exit code what kind it is of.
_BY_EXIT_CODE: Final[Mapping[int, tuple[int, str]]] = {
    2: (422, "unusable"),
    5: (503, "try_again"),
    10: (404, "not_found"),
    11: (409, "conflict"),
    12: (403, "not_authorised"),
}
_OTHERWISE: Final = (500, "failed")

CODES: Final = frozenset(
    {
        *(code for _, code in _BY_EXIT_CODE.values()),
        "failed",
        "internal",
        "malformed",
        "method_not_allowed",
        "too_large",
        "unsupported_type",
    }
)


def refusal_of(error: Exception) -> Refused:
    """The answer to a request that an error for operators has ended."""
    exit_code = int(getattr(error, "exit_code", 1))
    status, code = _BY_EXIT_CODE.get(exit_code, _OTHERWISE)
    return Refused(status, code, str(error), exit_code)


def malformed(message: str) -> Refused:
    """What was sent is not of the form that the description of the interface asks for."""
    return Refused(400, "malformed", message, 2)
