"""`dba bench converted`: a converted model beside its source, here and in Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dba_cli.commands.bench.common import (
    Output,
    command_line,
    numbers,
    repeats_option,
    show,
    table_options,
    threads_option,
)
from dba_cli.options import weights_options
from dba_core.runs.choosing import RunChoice


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@weights_options
@click.option(
    "--prompt",
    "prompts",
    callback=numbers(least=2),
    default="512,2000",
    show_default=True,
    metavar="N,...",
    help="Tokens of the prompt.",
)
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens of a turn."
)
@threads_option
@repeats_option(20)
@table_options
def converted(output: Output, source: Path, run_flags: RunChoice, **settings: Any) -> None:
    """Tokens per second of RUN's model, of the SOURCE that it was converted from, and of transformers.

    SOURCE is what `dba convert` was given. Needs transformers, which the extra 'bench' installs.

    \b
    Examples:
      dba bench converted model.gguf runs/smol
      dba bench converted model.gguf runs/smol --prompt 512 --threads 1,2
    """
    from dba_cli.progress import TerminalReporter
    from dba_plugins.bench.converted import ConvertedSettings, measure_converted

    report = measure_converted(
        source,
        run_flags.load(TerminalReporter()),
        ConvertedSettings(**settings),
        command=command_line(),
        on_case=output.progress,
    )
    show(report, output)
