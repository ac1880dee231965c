"""`dba bench long`: the long-sequence path beside exact attention, forward and backward."""

from __future__ import annotations

import click

from dba_cli.commands.bench.common import Output, command_line, numbers, repeats_option, report_options, show


@click.command()
@click.option(
    "--tokens",
    callback=numbers(least=1),
    default="2048,4096,8192",
    show_default=True,
    metavar="N,...",
    help="Tokens of the sequence.",
)
@click.option(
    "--q-chunk", type=click.IntRange(min=1), default=128, show_default=True, help="Query tokens of a chunk."
)
@repeats_option(20)
@report_options
def long(output: Output, tokens: tuple[int, ...], q_chunk: int, repeats: int) -> None:
    """Time of one layer's forward and backward pass over long sequences.

    \b
    Examples:
      dba bench long
      dba bench long --tokens 4096 --q-chunk 256
    """
    from dba_plugins.bench.attention import long_report
    from dba_plugins.bench.charts import bars

    show(
        long_report(tokens=tokens, q_chunk=q_chunk, repeats=repeats, command=command_line()),
        output,
        draw=bars,
    )
