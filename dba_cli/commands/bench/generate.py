"""`dba bench generate`: decoding with a whole model beside Hugging Face transformers."""

from __future__ import annotations

from typing import Any

import click

from dba_cli import completing
from dba_cli.commands.bench.common import (
    Output,
    command_line,
    numbers,
    repeats_option,
    report_options,
    show,
    threads_option,
)


@click.command()
@click.option(
    "--batch",
    "batches",
    callback=numbers(least=1),
    default="1,4",
    show_default=True,
    metavar="N,...",
    help="Sequences.",
)
@click.option(
    "--length",
    "lengths",
    callback=numbers(least=1),
    default="1024,8192,32768",
    show_default=True,
    metavar="N,...",
    help="Cached tokens of each.",
)
@click.option(
    "--d-model", type=click.IntRange(min=8), default=512, show_default=True, help="Width of both models."
)
@click.option(
    "--layers", "n_layers", type=click.IntRange(min=1), default=8, show_default=True, help="Layers."
)
@click.option("--heads", "n_heads", type=click.IntRange(min=1), default=8, show_default=True, help="Heads.")
@click.option(
    "--d-ff",
    type=click.IntRange(min=1),
    default=1408,
    show_default=True,
    help="Width of the feed-forward part.",
)
@click.option(
    "--vocab-size",
    type=click.IntRange(min=2),
    default=32000,
    show_default=True,
    help="Tokens of the vocabulary.",
)
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=8, show_default=True, help="Tokens of a turn."
)
@click.option(
    "--kv-policy",
    "policies",
    shell_complete=completing.kv_policy,
    multiple=True,
    metavar="POLICY",
    help="Formats of our cache; may be repeated.",
)
@threads_option
@repeats_option(20)
@report_options
def generate(output: Output, policies: tuple[str, ...], **sizes: Any) -> None:
    """Tokens per second of our model and of a Llama with the same number of parameters.

    Needs transformers, which the extra 'bench' installs.

    \b
    Examples:
      dba bench generate
      dba bench generate --batch 1 --length 1024,8192 --threads 1
    """
    from dba_plugins.bench.charts import generate_chart
    from dba_plugins.bench.generate import POLICIES, GenerateSettings, measure_generate

    settings = GenerateSettings(policies=policies or POLICIES, **sizes)
    report = measure_generate(settings, command=command_line(), on_case=output.progress)
    show(report, output, draw=generate_chart)
