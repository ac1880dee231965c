"""`dba bench prefill`: a chunk of tokens into a cache that holds as many, per KV policy."""

from __future__ import annotations

import click

from dba_cli import completing
from dba_cli.commands.bench.common import Output, command_line, repeats_option, report_options, show


@click.command()
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Tokens of the chunk, and cached ones.",
)
@click.option(
    "--kv-policy",
    "policies",
    multiple=True,
    shell_complete=completing.kv_policy,
    metavar="POLICY",
    help="May be repeated; the first one is compared with.",
)
@repeats_option(20)
@report_options
def prefill(output: Output, tokens: int, policies: tuple[str, ...], repeats: int) -> None:
    """Time of TOKENS tokens after as many cached ones, each policy against the first (fp16).

    \b
    Examples:
      dba bench prefill
      dba bench prefill --tokens 512 --repeats 50
    """
    from dba_plugins.bench.attention import POLICIES, prefill_report
    from dba_plugins.bench.charts import bars

    report = prefill_report(
        tokens=tokens, policies=policies or POLICIES, repeats=repeats, command=command_line()
    )
    show(report, output, draw=bars)
