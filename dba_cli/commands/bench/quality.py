"""`dba bench quality`: held-out loss of a run per KV policy, against bytes per token."""

from __future__ import annotations

import click

from dba_cli import completing
from dba_cli.commands.bench.common import Output, command_line, report_options, show
from dba_cli.options import weights_options
from dba_core.runs.choosing import RunChoice, check_data


@click.command()
@weights_options
@click.option(
    "--data",
    metavar="TEXT",
    shell_complete=completing.corpora,
    help="Other text, all of it. Without it: the run's held-out part.",
)
@click.option("--tokens", type=click.IntRange(min=1), default=16384, show_default=True, help="Tokens of it.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens of a window. Without it: the run's context."
)
@click.option(
    "--kv-policy",
    "policies",
    multiple=True,
    shell_complete=completing.kv_policy,
    metavar="POLICY",
    help="May be repeated. Without it: a dozen from fp32 to all-q4.",
)
@report_options
def quality(
    output: Output,
    run_flags: RunChoice,
    data: str | None,
    tokens: int,
    context: int | None,
    policies: tuple[str, ...],
) -> None:
    """The loss of RUN's model with its cache in each policy, and what a token then costs.

    \b
    Examples:
      dba bench quality latest
      dba bench quality latest --tokens 65536 --context 512 --plot
    """
    from dba_core.runs.evaluate import text_of
    from dba_plugins.bench.quality import POLICIES, measure_quality
    from dba_plugins.bench.quality_chart import quality_chart

    check_data(data)
    from dba_cli.progress import TerminalReporter

    run = run_flags.load(TerminalReporter())
    report = measure_quality(
        run.model,
        text_of(run, data)[1],
        policies=policies or POLICIES,
        context=context or run.config.model.context,
        limit_tokens=tokens,
        name=run.config.name,
        command=command_line(),
        on_policy=output.progress,
    )
    show(report, output, draw=quality_chart)
