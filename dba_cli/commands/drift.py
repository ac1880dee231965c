"""`dba drift`: how far the long-sequence path of a run's model is from exact attention, on real text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dba_cli.run_options import RunFlags, weights_options

if TYPE_CHECKING:
    from dba_core.runs.drift_report import DriftReport
    from dba_core.runs.drift_thresholds import Threshold
    from dba_core.runs.load import Run

_SWITCH = {"on": (True,), "off": (False,), "both": (True, False)}


class _Numbers(click.ParamType):
    """Whole numbers with commas between them, each at least `least`; one that comes twice counts once."""

    name = "numbers"

    def __init__(self, *, least: int) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        numbers = []
        for part in str(value).split(","):
            if not part.strip().isdecimal() or int(part) < self.least:
                self.fail(
                    f"{part.strip()!r} is no whole number >= {self.least}; write 64 or 32,64,128", param, ctx
                )
            numbers.append(int(part))
        return tuple(dict.fromkeys(numbers))


class _Names(click.ParamType):
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = [part.strip() for part in str(value).split(",")]
        if not all(names):
            self.fail(f"{value!r} has an empty name; write mean or mean,linear", param, ctx)
        return tuple(dict.fromkeys(names))


@click.command()
@weights_options
@click.option("--data", metavar="PATH", help="Other text, all of it. Without it: the run's held-out part.")
@click.option("--documents", type=click.IntRange(min=1), help="Stretches of the text. Without it: up to 4.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    help="Positions of a document. Without it: the training context, or where that is too short so many that "
    "half of them read memory tokens.",
)
@click.option(
    "--mem-block", type=_Numbers(least=1), default=(), metavar="N,...", help="Tokens of a memory token."
)
@click.option(
    "--local-window", type=_Numbers(least=0), default=(), metavar="N,...", help="Full-resolution tokens."
)
@click.option("--q-chunk", type=click.IntRange(min=1), metavar="N", help="Query tokens of a chunk.")
@click.option(
    "--summarizer",
    type=_Names(),
    default=(),
    metavar="NAME,...",
    help="The run's own, or one without weights such as 'mean'.",
)
@click.option("--mass-correction", type=click.Choice(list(_SWITCH)), help="log(mem_block) on memory logits.")
@click.option(
    "--fail-above",
    "limits",
    multiple=True,
    metavar="METRIC=X",
    help="Exit with 1 where a setting is above X; may be repeated. delta_nll, ppl_ratio, max_abs_logit or kl, "
    "or beyond_window.kl and so on.",
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
    from dba_core.runs.drift_thresholds import check_thresholds, parse_threshold

    thresholds = tuple(map(parse_threshold, limits))
    run = run_flags.load()
    report = _measured(run, thresholds, _SWITCH.get(mass_correction or "", ()), settings)
    written = _written(run, report, out, plot=plot)
    _show(report, written, as_json=as_json)
    check_thresholds(report)


def _measured(
    run: Run, thresholds: tuple[Threshold, ...], mass_correction: tuple[bool, ...], settings: dict[str, Any]
) -> DriftReport:
    from dba_core.runs.drift import DriftRequest, drift_of_run

    request = DriftRequest(thresholds=thresholds, mass_correction=mass_correction, **settings)
    with _progress() as on_pass:
        return drift_of_run(run, request, on_pass=on_pass)


def _written(run: Run, report: DriftReport, out: Path | None, *, plot: bool) -> list[Path]:
    """The files that were asked for, which replace those of an earlier comparison."""
    if out is None and not plot:
        return []
    from dba_core.runs.folder import write_json

    folder = run.folder.path / "drift" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "drift.json"]
    write_json(files[0], report.to_dict())
    if plot:
        from dba_core.runs.drift_plot import drift_curves

        files.append(folder / "drift.png")
        drift_curves(files[1], report, name=run.config.name)
    return files


def _show(report: DriftReport, written: list[Path], *, as_json: bool) -> None:
    from dba_cli.rendering import columns, echo_json, two_columns
    from dba_core.runs.drift_rows import HEADER, report_rows, setting_rows

    if as_json:
        echo_json(report.to_dict())
    else:
        two_columns(f"Drift of {report.run}", report_rows(report))
        columns("Long-sequence attention against exact attention", HEADER, setting_rows(report))
    for note in report.notes:
        click.echo(f"note: {note}.", err=True)
    for path in written:
        click.echo(f"Wrote {path}", err=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while passes are made, on a terminal only."""
    from rich.progress import Progress

    from dba_cli.rendering import console

    where = console(stderr=True)
    with Progress(console=where, transient=True, disable=not where.is_terminal) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
