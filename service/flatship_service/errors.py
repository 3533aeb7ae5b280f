"""What a program tells its operator instead of a stack trace.

One class a remedy. ``exit_code`` is what the command ends with.
"""

from typing import ClassVar


class OperatorError(Exception):
    """Root of the errors whose message is written for the operator."""

    exit_code: ClassVar[int] = 1


class ConfigError(OperatorError):
    """A configuration file, or what it asks for, is wrong; change the file."""

    exit_code = 2


class KeyFileError(OperatorError):
    """A key file is missing, unreadable, readable by others, or holds no key."""

    exit_code = 2


class NotFoundError(OperatorError):
    """There is no such thing under the given name."""

    exit_code = 10


class ConflictError(OperatorError):
    """Something else holds the given name."""

    exit_code = 11
