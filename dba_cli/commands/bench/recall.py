"""`dba bench recall`: two small tasks that show what the long-sequence path carries."""

from __future__ import annotations

import click

from dba_cli.commands.bench.common import Output, command_line, show, table_options


@click.command()
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Models of each kind."
)
@table_options
def recall(output: Output, seeds: int) -> None:
    """Train small models to recall what only the window, or only memory tokens, can tell. Takes minutes.

    \b
    Examples:
      dba bench recall
      dba bench recall --seeds 1
    """
    from dba_plugins.bench.recall import recall_report

    show(recall_report(seeds=seeds, command=command_line()), output)
