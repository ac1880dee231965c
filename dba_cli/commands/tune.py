"""`dba tune`: the KV policy of a run's model that meets a memory budget or a quality gate, by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dba_cli import completing
from dba_cli.measured import bar, numbers, write_measured
from dba_cli.preflight import check_data
from dba_cli.run_options import RunFlags, weights_options
from dba_cli.terminal import echo

if TYPE_CHECKING:
    from dba_core.runs.load import Run
    from dba_plugins.tune.measure import TuneReport


@click.command()
@weights_options
@click.option(
    "--budget-bytes",
    type=int,
    metavar="N",
    help="Bytes per token, all layers and window, at most.",
)
@click.option("--max-delta-nll", type=float, metavar="X", help="Nats per token that it may cost.")
@click.option(
    "--data",
    metavar="TEXT",
    shell_complete=completing.corpora,
    help="Other text, all of it. Without it: the run's held-out part.",
)
@click.option("--tokens", type=click.IntRange(min=2), default=4096, show_default=True, help="Tokens of it.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens of a window. Without it: the run's context."
)
@click.option(
    "--target-context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of the sequence that --budget-bytes is for, window included. Without it: the run's context.",
)
@click.option(
    "--resid",
    "windows",
    callback=numbers(least=0),
    metavar="N,...",
    help="Residual windows to try: newest tokens that stay in fp16. Without it: 0, 32 and the run's own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write tune.json there, and tune.png with --plot.",
)
@click.option("--plot", is_flag=True, help="Draw tune.png; without --out into the run's folder, under tune/.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def tune(
    run_flags: RunFlags,
    budget_bytes: int | None,
    max_delta_nll: float | None,
    data: str | None,
    tokens: int,
    context: int | None,
    target_context: int | None,
    windows: tuple[int, ...],
    out: Path | None,
    plot: bool,
    as_json: bool,
) -> None:
    """Find the KV policy for RUN's model: the best within a budget, or the smallest that is good enough.

    RUN is a run's folder, a unique part of its name under runs/, or 'latest'. Each tensor's formats are
    measured alone, then the most promising policies as a whole, against exact attention on the same text. The
    run's own policy is among them. Exits with 1 where no policy keeps the goal.

    \b
    Examples:
      dba tune latest --budget-bytes 200
      dba tune latest --max-delta-nll 0.01 --plot
      dba tune latest --budget-bytes 300 --target-context 8192 --max-delta-nll 0.02 --json
    """
    from dba_plugins.tune.measure import TuneRequest, tune_run
    from dba_plugins.tune.search import Goal

    goal = Goal(budget_bytes=budget_bytes, max_delta_nll=max_delta_nll)
    check_data(data)
    run = run_flags.load()
    request = TuneRequest(
        goal=goal, data=data, tokens=tokens, context=context, target_context=target_context, windows=windows
    )
    with bar("measuring") as on_step:
        report = tune_run(run, request, on_step=on_step)
    written = _written(run, report, out, plot=plot)
    _show(report, written, as_json=as_json)
    report.search.result.require(goal, "policy")


def _written(run: Run, report: TuneReport, out: Path | None, *, plot: bool) -> list[Path]:
    def draw(path: Path) -> None:
        from dba_plugins.tune.plot import tune_chart

        tune_chart(path, report, name=run.config.name)

    return write_measured("tune", report.to_dict(), run=run.folder.path, out=out, draw=draw if plot else None)


def _show(report: TuneReport, written: list[Path], *, as_json: bool) -> None:
    from dba_cli.rendering import columns, echo_json
    from dba_plugins.tune.measure import header, rows

    if as_json:
        echo_json(report.to_dict())
    else:
        columns(f"KV policies of {report.run}: {report.goal}", header(report), rows(report))
        echo(
            f"Nats per token against exact attention, over {report.tokens:,} tokens; ± over windows of "
            f"{report.context}. Bytes: of a cache of so many tokens, residual window included; a budget is "
            f"for {report.target_context:,}."
        )
        for note in report.notes:
            echo(f"Note: {note}.")
        if report.chosen is not None:
            policy = report.chosen.short
            echo(f"Chosen: {report.bytes_line(report.chosen)}.")
            echo(f'\nNext:\n  dba eval {report.run} --kv-policy "{policy}"')
            echo(f'  dba sample {report.run} --kv-policy "{policy}"')
    for path in written:
        echo(f"Wrote {path}", err=True)
