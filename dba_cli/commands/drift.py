"""`dba drift`: how far the long-sequence path of a run's model is from exact attention, on real text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dba_cli import completing
from dba_cli.measured import bar, numbers, write_measured
from dba_cli.preflight import check_data, check_plugins
from dba_cli.run_options import RunFlags, weights_options
from dba_cli.terminal import echo

if TYPE_CHECKING:
    from dba_core.runs.load import Run
    from dba_plugins.drift.report import DriftReport
    from dba_plugins.drift.thresholds import Threshold

_SWITCH = {"on": (True,), "off": (False,), "both": (True, False)}


def _names(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise click.BadParameter(f"{text!r} has an empty name; write mean or mean,linear.")
    return tuple(dict.fromkeys(parts))


@click.command()
@weights_options
@click.option(
    "--data",
    metavar="PATH",
    shell_complete=completing.corpora,
    help="Other text, all of it. Without it: the run's held-out part.",
)
@click.option("--documents", type=click.IntRange(min=1), help="Stretches of the text. Without it: up to 4.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    help="Positions of a document. Without it: the training context, or where fewer than a quarter of its "
    "positions read memory tokens, so many that half of them do.",
)
@click.option("--mem-block", callback=numbers(least=1), metavar="N,...", help="Tokens of a memory token.")
@click.option("--local-window", callback=numbers(least=0), metavar="N,...", help="Full-resolution tokens.")
@click.option("--q-chunk", type=click.IntRange(min=1), metavar="N", help="Query tokens of a chunk.")
@click.option(
    "--summarizer",
    shell_complete=completing.summarizer_list,
    callback=_names,
    metavar="NAME,...",
    help="The run's own, or one without weights such as 'mean'.",
)
@click.option("--mass-correction", type=click.Choice(list(_SWITCH)), help="log(mem_block) on memory logits.")
@click.option(
    "--fail-above",
    "limits",
    multiple=True,
    metavar="METRIC=X",
    help="Exit with 1 where a setting is above X; may be repeated. METRIC: delta_nll, ppl_ratio, "
    "max_abs_logit, kl, or beyond_window.kl and so on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write drift.json there, and drift.png with --plot.",
)
@click.option(
    "--plot", is_flag=True, help="Draw drift.png; without --out into the run's folder, under drift/."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def drift(
    run_flags: RunFlags,
    mass_correction: str | None,
    limits: tuple[str, ...],
    out: Path | None,
    plot: bool,
    as_json: bool,
    **settings: Any,
) -> None:
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
    from dba_plugins.drift.thresholds import check_thresholds, parse_threshold

    thresholds = tuple(map(parse_threshold, limits))
    check_data(settings["data"])
    check_plugins("summarizer", settings["summarizer"])
    run = run_flags.load()
    report = _measured(run, thresholds, _SWITCH.get(mass_correction or "", ()), settings)
    written = _written(run, report, out, plot=plot)
    _show(report, written, as_json=as_json)
    check_thresholds(report)


def _measured(
    run: Run, thresholds: tuple[Threshold, ...], mass_correction: tuple[bool, ...], settings: dict[str, Any]
) -> DriftReport:
    from dba_plugins.drift.measure import DriftRequest, drift_of_run

    request = DriftRequest(thresholds=thresholds, mass_correction=mass_correction, **settings)
    with bar("comparing") as on_pass:
        return drift_of_run(run, request, on_pass=on_pass)


def _written(run: Run, report: DriftReport, out: Path | None, *, plot: bool) -> list[Path]:
    def draw(path: Path) -> None:
        from dba_plugins.drift.plot import drift_curves

        drift_curves(path, report, name=run.config.name)

    return write_measured(
        "drift", report.to_dict(), run=run.folder.path, out=out, draw=draw if plot else None
    )


def _show(report: DriftReport, written: list[Path], *, as_json: bool) -> None:
    from dba_cli.rendering import columns, echo_json, two_columns
    from dba_plugins.drift.rows import HEADER, report_rows, setting_rows

    if as_json:
        echo_json(report.to_dict())
    else:
        two_columns(f"Drift of {report.run}", report_rows(report))
        columns("Long-sequence attention against exact attention", HEADER, setting_rows(report))
    for note in report.notes:
        echo(f"note: {note}.", err=True)
    for path in written:
        echo(f"Wrote {path}", err=True)
