"""The ``config`` commands of both programs: what is wrong, and what is in force."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flatship_service.cli import USAGE, config_option, tell
from flatship_service.config_text import config_text
from flatship_service.configfile import Loaded, WrongConfiguration
from flatship_service.http_access import checked


def config_command(read: Callable[[Path | None], Loaded[Any]]) -> click.Group:
    """Return the group of ``check`` and ``show``.

    Args:
        read: Reads the configuration, of a file or of the system, and makes nothing. Its value
            has ``http``, an HttpAccess. Raises WrongConfiguration.
    """

    @click.group(name="config", short_help="Check or show the configuration.")
    def config() -> None:
        """Check or show the configuration."""

    @config.command(short_help="Say what is wrong with the configuration.")
    @config_option
    def check(config: Path | None) -> int:
        """Say what is wrong with the configuration, a line each; of a good one nothing."""
        try:
            checked(read(config))
        except WrongConfiguration as error:
            for problem in error.problems:
                tell(f"error: {problem}")
            return USAGE
        return 0

    @config.command(short_help="Print the configuration, and where it comes from.")
    @click.option("--effective", is_flag=True, help="With the keys that no file sets.")
    @config_option
    def show(effective: bool, config: Path | None) -> None:
        """Print what the files say together as TOML; a comment says where each value is set."""
        click.echo(config_text(read(config), defaults=effective), nl=False)

    return config
