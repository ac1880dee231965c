"""`dba bench kernels`: what the compiled GPU decode kernels look like, on a machine without a GPU."""

from __future__ import annotations

import click

from dba_cli import completing
from dba_cli.commands.bench.common import Output, command_line, names, show, table_options
from dba_cli.terminal import echo


@click.command()
@click.option(
    "--static",
    is_flag=True,
    help="Compile for sm_80, sm_90 and sm_100 and read the machine code; nothing is run.",
)
@click.option("--check", is_flag=True, help="Exit with an error where a limit is exceeded.")
@click.option(
    "--backend",
    "backends",
    shell_complete=completing.backend_list,
    callback=names,
    metavar="NAME,...",
    help="Without it: all that have any.",
)
@table_options
def kernels(output: Output, backends: tuple[str, ...], *, static: bool, check: bool) -> None:
    """Registers, spills, loads and instructions per cached token of the decode kernels.

    \b
    Examples:
      dba bench kernels --static
      dba bench kernels --static --check --backend triton_2pass
    """
    from dba_core.errors import UsageError
    from dba_plugins.bench.kernels import read_kernels

    if not static:
        raise UsageError(
            "dba bench kernels reads machine code only: give --static; for times on a GPU, use "
            "dba bench decode --device cuda"
        )
    report = read_kernels(backends, command=command_line(), on_kernel=output.progress)
    show(report, output)
    failed = [row for row in report.rows if row["failures"]]
    if check and failed:
        echo(f"{len(failed)} of {len(report.rows)} kernels exceed a limit; see their verdicts", err=True)
        raise click.exceptions.Exit(1)
