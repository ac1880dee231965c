"""Long-sequence attention of a run against exact attention.

dba drift RUN
run(DriftRequest(run=RunChoice(run="latest")), SilentReporter())
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dba_core.command import Command, command_line, summary_of
from dba_core.hookspecs import hookimpl
from dba_core.report import Picture, Report, Reporter, Table, as_plain
from dba_core.runs.choosing import check_data, check_plugins
from dba_plugins.drift.request import DriftRequest

if TYPE_CHECKING:
    from dba_core.runs.load import Run
    from dba_plugins.drift.findings import DriftFindings


def run(request: DriftRequest, reporter: Reporter) -> Report:
    """How far long-sequence attention is from exact attention on RUN's weights and text.

    RUN is a run's folder, a unique part of its name under runs/, or 'latest'. Lists are swept: every
    combination is measured. What is not given is as in the run's configuration.

    \b
    Examples:
      dba drift latest
      dba drift latest --local-window 16,32,64 --mem-block 8,16 --q-chunk 16 --plot
      dba drift latest --length 2048 --mass-correction both --json
      dba drift latest --q-chunk 32 --local-window 64 --fail-above delta_nll=0.5
    """
    _ = request.thresholds  # a wrong one is refused before anything is measured
    check_data(request.data)
    check_plugins("summarizer", request.summarizer)
    loaded = request.run.load(reporter)
    from dba_plugins.drift.measure import drift_of_run

    return report_of(loaded, drift_of_run(loaded, request, reporter), command=command_line("drift", request))


def report_of(run: Run, found: DriftFindings, *, command: str) -> Report:
    """command: that found it."""
    from dba_plugins.drift.findings import HEADER, fact_rows, setting_rows

    def draw(path: Path) -> None:
        from dba_plugins.drift.plot import drift_curves

        drift_curves(path, found, name=run.config.name)

    title = f"Drift of {found.run}"
    return Report(
        name="drift",
        title=title,
        command=command,
        tables=(
            Table.of_facts(list(fact_rows(found)), title=title),
            Table.of_texts(
                HEADER,
                list(setting_rows(found)),
                title="Long-sequence attention against exact attention",
            ),
        ),
        figures=as_plain(found),
        notes=found.notes,
        pictures=(Picture(name="drift", draw=draw),),
        failed=found.failed,
        folder=run.folder.path / "drift",
    )


@hookimpl
def dba_command() -> Command[DriftRequest]:
    return Command(
        name="drift",
        contract=1,
        summary=summary_of(__doc__),
        request_class=DriftRequest,
        run=run,
        draws=True,
    )
