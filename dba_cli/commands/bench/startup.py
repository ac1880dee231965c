"""`dba bench startup`: what is waited for before anything is computed."""

from __future__ import annotations

import click

from dba_cli.commands.bench.common import Output, command_line, repeats_option, show, table_options


@click.command()
@repeats_option(5)
@table_options
def startup(output: Output, repeats: int) -> None:
    """Time of imports, of `dba --help`, and of the first decoded token with and without compiled kernels.

    \b
    Examples:
      dba bench startup
    """
    from dba_plugins.bench.startup import measure_startup

    show(measure_startup(repeats=repeats, command=command_line()), output)
