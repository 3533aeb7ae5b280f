"""The ``password`` command of both programs: a line for the users file."""

import sys

import click

from flatship_service.errors import OperatorError
from flatship_service.passwords import MAX_PASSWORD, users_line


class PasswordRefused(OperatorError):
    """A name or a password cannot be used; choose another."""

    exit_code = 2


@click.command(name="password", short_help="Make a line for the users file.")
@click.argument("name")
def password_command(name: str) -> None:
    """Ask for a password and print the line that lets NAME read metrics with it.

    Append it to the file that users_file names. Without a terminal the password is read from
    standard input, as one line.
    """
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline(MAX_PASSWORD + 2).rstrip("\r\n")
    try:
        click.echo(users_line(name, password))
    except ValueError as error:
        raise PasswordRefused(str(error)) from None
