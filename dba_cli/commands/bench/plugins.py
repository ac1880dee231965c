"""`dba bench plugins`: what each summarizer, gate and null token costs."""

from __future__ import annotations

import click

from dba_cli.commands.bench.common import Output, command_line, repeats_option, show, table_options


@click.command()
@repeats_option(50)
@table_options
def plugins(output: Output, repeats: int) -> None:
    """Parameters and time of every installed summarizer, gate and null token, other distributions' too.

    \b
    Examples:
      dba bench plugins
    """
    from dba_plugins.bench.plugin_cost import measure_plugins

    show(measure_plugins(repeats=repeats, command=command_line()), output)
