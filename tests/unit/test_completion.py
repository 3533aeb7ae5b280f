"""A shell is told how to complete a program's words."""

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flatship_receiver.cli import cli as receiver_cli
from flatship_sender.cli import cli as sender_cli
from flatship_service.cli import USAGE, run
from flatship_service.completion import SHELLS, completion_script

PROGRAMS = [("flatship-sender", sender_cli), ("flatship-receiver", receiver_cli)]


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_each_program_prints_a_script_for_each_shell(
    name: str, program: click.Group, shell: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(program, arguments=["completion", shell]) == 0
    printed = capfd.readouterr().out
    assert name in printed
    assert f"{shell}_complete" in printed
    assert printed == completion_script(program, name, shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_what_its_shell_can_read(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run(
        [shell, "-n"],
        input=completion_script(sender_cli, "flatship-sender", shell),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_the_variable_that_a_script_sets_is_the_one_that_the_program_reads(
    name: str, program: click.Group
) -> None:
    script = completion_script(program, name, "bash")
    variable = next(word.split("=")[0] for word in script.split() if "=bash_complete" in word)
    completed = subprocess.run(
        [Path(sys.executable).with_name(name)],
        env={variable: "bash_complete", "COMP_WORDS": f"{name} id", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout == "plain,identity\n"


def test_a_shell_that_is_not_known_is_refused_with_those_that_are(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(sender_cli, arguments=["completion", "csh"]) == USAGE
    assert "'bash', 'zsh', 'fish'" in capfd.readouterr().err
