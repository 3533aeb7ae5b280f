"""The frame of both programs: one line an error, one meaning an exit code."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from flatship_service.congestion import check_congestion_control
from flatship_service.errors import OperatorError
from flatship_service.printable import printable
from flatship_service.units import parse_duration, parse_rate, parse_size

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
DEBUG_VARIABLE: Final = "FLATSHIP_DEBUG"

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """An option whose text a function turns into its value.

    Args:
        name: What help shows in the place of the value.
        parse: Raises ValueError with what it expected.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; a default that is a value already stays as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE: Final = Parsed("size", parse_size)
RATE: Final = Parsed("rate", parse_rate)
DURATION: Final = Parsed("duration", parse_duration)
CONGESTION_CONTROL: Final = Parsed("name", check_congestion_control)


def config_option(command: F) -> F:
    """Add ``--config FILE``."""
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Read this file; by default that of /etc/flatship, or ~/.config/flatship.",
    )(command)


def state_option(command: F) -> F:
    """Add ``--state DIR``."""
    return click.option(
        "--state",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where keys and records are kept; by default below /var/lib/flatship, or for"
        " other users than root ~/.local/state/flatship.",
    )(command)


def run(
    command: click.Command,
    errors: tuple[type[Exception], ...] = (),
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a program and return its exit code.

    Args:
        command: What click is to run. A number that it returns is the exit code.
        errors: Classes besides OperatorError whose messages are written for
            operators and whose ``exit_code`` says how the program ends.
        arguments: Those of the process when not given.
    """
    try:
        result = command.main(arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        _forget_standard_output()
        return FAILED
    except SystemExit as leaving:  # click's way out when a write finds that nobody reads
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        return _show_click_error(error)
    except Exception as error:
        return _show_error(error, (OperatorError, *errors))


def _show_click_error(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        message = f"{message.removesuffix('.')}; see {context.command_path} --help"
    _say(message)
    return error.exit_code


def _show_error(error: BaseException, expected: tuple[type[Exception], ...]) -> int:
    cause = _cause(error, expected)
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(cause, expected):
        _say(str(cause))
        return int(getattr(cause, "exit_code", FAILED))
    _say(
        f"internal error: {type(cause).__name__}: {cause}; "
        f"run again with {DEBUG_VARIABLE}=1 for details"
    )
    return FAILED


def _cause(error: BaseException, expected: tuple[type[Exception], ...]) -> BaseException:
    """Of the errors that a task group collected: one for operators, or else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(inner, expected) for inner in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, expected)), causes[0])


def tell(line: str) -> None:
    """Write a line to standard error; that nobody reads it stops nothing."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def _say(message: str) -> None:
    tell(f"error: {message}")


def _forget_standard_output() -> None:
    """Keep the interpreter from flushing, at its end, into a pipe that nobody reads."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
