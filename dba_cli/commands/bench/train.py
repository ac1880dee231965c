"""`dba bench train`: a training step of each layout beside a plain PyTorch GPT."""

from __future__ import annotations

from typing import Any

import click

from dba_cli import completing
from dba_cli.commands.bench.common import Output, command_line, names, repeats_option, report_options, show
from dba_cli.options import config_options
from dba_core.runs.choosing import ConfigChoice


@click.command()
@config_options
@click.option(
    "--mode",
    "modes",
    shell_complete=completing.mode_list,
    callback=names,
    metavar="NAME,...",
    help="Attention layouts. Without it: all.",
)
@repeats_option(30)
@report_options
def train(output: Output, flags: ConfigChoice, modes: tuple[str, ...], repeats: int) -> None:
    """Time of a training step. Without a configuration: that of the preset shakespeare-cpu, on bytes.

    \b
    Examples:
      dba bench train
      dba bench train --preset paper-decoupled --mode standard,decoupled --repeats 5
    """
    from dba_core.config.attention import MODES
    from dba_core.errors import UsageError, unknown
    from dba_plugins.bench.charts import bars
    from dba_plugins.bench.train import train_report

    for mode in modes:
        if mode not in MODES:
            raise UsageError(unknown("attention layout", mode, MODES))
    report = train_report(_config(flags), modes=modes or MODES, repeats=repeats, command=command_line())
    show(report, output, draw=bars)


def _config(flags: ConfigChoice) -> Any:
    from dba_plugins.bench.train import default_config

    if [flag for flag in flags.given if flag != "--device"]:
        return flags.load().config
    return default_config(flags.device or "cpu")
