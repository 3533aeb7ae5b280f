"""The ``completion`` command: what a shell has to read to complete a program's words."""

from typing import Final

import click
from click.shell_completion import get_completion_class

SHELLS: Final = ("bash", "zsh", "fish")


def completion_command(program: click.Group, name: str) -> click.Command:
    """Return a command that prints the script for a shell.

    Args:
        program: What is completed.
        name: How it is called on a command line.
    """

    @click.command(name="completion", short_help="Print what a shell reads to complete words.")
    @click.argument("shell", type=click.Choice(SHELLS))
    def completion(shell: str) -> None:
        """Print the script that lets SHELL complete commands, options and their values."""
        click.echo(completion_script(program, name, shell), nl=False)

    return completion


def completion_script(program: click.Group, name: str, shell: str) -> str:
    """The script for one of ``SHELLS``; at each completion it runs the program."""
    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(f"no completion for {shell!r}; there is one for {', '.join(SHELLS)}")
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"  # the one that click's main() reads
    # Not source(): for bash it runs one, to judge the shell of the machine that builds.
    return kind.source_template % kind(program, {}, name, variable).source_vars()
