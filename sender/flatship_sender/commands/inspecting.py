"""``inspect``: what disks hold."""

from contextlib import closing

import click
import msgspec

from flatship_sender.commands.sources import Selection, sources_options
from flatship_sender.inspect import InspectionReport, describe, inspect
from flatship_sender.sources.opening import open_source


@click.command(name="inspect", short_help="Show what disks hold, without sending them.")
@sources_options
@click.option("--exact", is_flag=True, help="Read everything instead of a sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a source.")
def inspect_(selection: Selection, exact: bool, as_json: bool) -> None:
    """Show what each SOURCE holds and what sending it would take, without sending it."""
    for each in selection.choose(may_run=True).sources:
        path = each.path
        with closing(open_source(path, live=True, source_format=each.format)) as source:
            found = inspect(source, exact=exact)
        if as_json:
            click.echo(msgspec.json.encode(InspectionReport.of(path, found)))
        else:
            click.echo(describe(path, found))
