"""The KV policy of a run that meets a budget or a gate, by measurement.

dba tune RUN
run(TuneRequest(run=RunChoice(run="latest"), budget_bytes=200), SilentReporter())
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dba_core.command import Command, command_line, summary_of
from dba_core.hookspecs import hookimpl
from dba_core.report import Picture, Report, Reporter, Table
from dba_core.runs.choosing import check_data
from dba_plugins.tune.request import TuneRequest

if TYPE_CHECKING:
    from dba_core.runs.load import Run
    from dba_plugins.tune.measure import TuneFindings


def run(request: TuneRequest, reporter: Reporter) -> Report:
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
    from dba_plugins.tune.measure import goal_of, tune_run

    goal = goal_of(request)
    check_data(request.data)
    loaded = request.run.load(reporter)
    found = tune_run(loaded, request, reporter)
    failed = None if found.chosen is not None else found.search.result.nearest(goal, "policy")
    return report_of(loaded, found, command=command_line("tune", request), failed=failed)


def report_of(run: Run, found: TuneFindings, *, command: str, failed: str | None) -> Report:
    """command: that found it. failed: why nothing was chosen."""
    from dba_plugins.tune.measure import header, rows

    def draw(path: Path) -> None:
        from dba_plugins.tune.plot import tune_chart

        tune_chart(path, found, name=run.config.name)

    chosen = found.chosen
    policy = "" if chosen is None else f'--kv-policy "{chosen.short}"'
    return Report(
        name="tune",
        title=f"KV policies of {found.run}: {found.goal}",
        command=command,
        tables=(Table.of_texts(header(found), list(rows(found))),),
        figures=found.figures(),
        notes=(
            f"nats per token against exact attention, over {found.tokens:,} tokens; ± over windows of "
            f"{found.context}. Bytes: of a cache of so many tokens, residual window included; a budget is "
            f"for {found.target_context:,}",
            *found.notes,
            *([] if chosen is None else [f"chosen: {found.bytes_line(chosen)}"]),
        ),
        pictures=(Picture(name="tune", draw=draw),),
        next=() if chosen is None else (f"dba eval {found.run} {policy}", f"dba sample {found.run} {policy}"),
        failed=failed,
        folder=run.folder.path / "tune",
        schema=2,
    )


@hookimpl
def dba_command() -> Command[TuneRequest]:
    return Command(
        name="tune",
        contract=1,
        summary=summary_of(__doc__),
        request_class=TuneRequest,
        run=run,
        draws=True,
    )
