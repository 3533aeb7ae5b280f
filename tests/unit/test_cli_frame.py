import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from flatship_service import cli
from flatship_service.errors import ConfigError, OperatorError


class StrangeError(Exception):
    """Belongs to another package, which has no OperatorError."""

    exit_code = 12


def raising(error: BaseException) -> click.Command:
    @click.command()
    def program() -> None:
        raise error

    return program


def ended(
    capsys: pytest.CaptureFixture[str], command: click.Command, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.run(command, (StrangeError,), list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(OperatorError("why"), 1), (ConfigError("why"), 2), (StrangeError("why"), 12)],
)
def test_expected_error_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert ended(capsys, raising(error)) == (code, "", "error: why\n")


def test_unexpected_error_is_one_line_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, raising(RuntimeError("a\nb"))) == (
        1,
        "",
        "error: internal error: RuntimeError: a\\nb; run again with FLATSHIP_DEBUG=1 for details\n",
    )


def test_trace_is_there_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATSHIP_DEBUG", "1")

    code, out, err = ended(capsys, raising(RuntimeError("why")))

    assert (code, out) == (1, "")
    assert "Traceback" in err


def test_message_cannot_send_escapes_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, raising(OperatorError("\x1b[2J\nerror: forged")))[2] == (
        "error: \\x1b[2J\\nerror: forged\n"
    )


def test_error_out_of_a_task_group_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("", [ValueError("noise"), ExceptionGroup("", [ConfigError("why")])])

    assert ended(capsys, raising(group)) == (2, "", "error: why\n")


def test_interrupted_command_ends_with_130_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(capsys, raising(KeyboardInterrupt()))

    assert (code, out, err.strip()) == (130, "", "")


def test_wrong_usage_ends_with_2_and_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(capsys, raising(ValueError()), "--nonsense")

    assert (code, out) == (2, "")
    assert err.startswith("error: No such option")
    assert err.endswith(" --help\n")
    assert "; see " in err
    assert err.count("\n") == 1


def test_group_without_a_command_shows_help_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = click.Group("program", commands={"sub": raising(ValueError())})

    code, out, err = ended(capsys, group)

    assert (code, out) == (2, "")
    assert "Usage:" in err


def test_help_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(capsys, raising(ValueError()), "--help")

    assert (code, err) == (0, "")
    assert "Usage:" in out


def returning(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize(("value", "code"), [(None, 0), (3, 3)])
def test_number_that_a_command_returns_is_its_exit_code(
    capsys: pytest.CaptureFixture[str], value: object, code: int
) -> None:
    assert ended(capsys, click.command("program")(returning(value)))[0] == code


def test_options_are_parsed_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    @click.command()
    @click.option("--limit", type=cli.RATE)
    @click.option("--size", type=cli.SIZE, default=5)
    @click.option("--expires", type=cli.DURATION)
    @cli.config_option
    @cli.state_option
    def program(**options: object) -> None:
        seen.append(options)

    arguments = ["--limit", "8Mbit", "--expires", "15m", "--config", "c", "--state", "s"]
    assert ended(capsys, program, *arguments)[0] == 0
    assert seen == [
        {"limit": 1_000_000, "size": 5, "expires": 900.0, "config": Path("c"), "state": Path("s")}
    ]


def test_option_that_does_not_parse_says_what_is_expected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = click.command("program")(click.option("--limit", type=cli.RATE)(returning(0)))

    code, _, err = ended(capsys, command, "--limit", "fast")

    assert code == 2
    assert "'--limit': expected a rate such as" in err


PRINTER = """
import sys, click
from flatship_service import cli

@click.command()
def program():
    for _ in range({lines}):
        print("line")

sys.exit(cli.run(program))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_reader_that_left_is_no_news(lines: int, unbuffered: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PRINTER.format(lines=lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""

    assert process.returncode == 1


@pytest.mark.parametrize("module", ["aiohttp", "cryptography", "rich", "asyncio", "structlog"])
def test_frame_does_not_load_what_most_commands_do_not_need(module: str) -> None:
    code = f"import sys, flatship_service.cli; sys.exit({module!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
