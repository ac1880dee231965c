"""The picture of a drift report, as PNG: loss difference and divergence along the positions, a line per setting.

Imported when it is drawn. Called by `dba drift --plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dba_core.runs.drift_report import CurvePoint, DriftReport, SettingReport

_DPI = 150
_GREY = "#6b6b6b"
_LEGEND_COLUMNS = 4


def drift_curves(path: Path, report: DriftReport, *, name: str) -> None:
    """Draw the curve of every setting."""
    labels = setting_labels(report.settings)
    legend_rows = -(-len(labels) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(8.6, 6.0 + 0.22 * legend_rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    loss, divergence = figure.subplots(2, 1, sharex=True)
    colors = colormaps["viridis"].resampled(len(labels) + 1)
    for number, (setting, label) in enumerate(zip(report.settings, labels, strict=True)):
        edges = [point.start for point in setting.curve] + [report.length]
        loss.stairs(_losses(setting.curve), edges, baseline=None, color=colors(number), label=label)
        divergence.stairs(_divergences(setting.curve), edges, baseline=None, color=colors(number))
    for axes in (loss, divergence):
        _decorate(axes, report)
    loss.set_ylabel("loss minus exact loss\n(nats per token)")
    divergence.set_ylabel("KL from the exact distribution\n(nats per token)")
    divergence.set_xlabel("position in the document")
    if any(point.figures.kl > 0 for setting in report.settings for point in setting.curve):
        divergence.set_yscale("log")
    figure.suptitle(_title(report, name), fontsize=10.5)
    figure.legend(
        loc="outside lower center", ncols=min(_LEGEND_COLUMNS, len(labels)), frameon=False, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def setting_labels(settings: Sequence[SettingReport]) -> list[str]:
    """What tells each setting from the others; all its numbers where nothing does."""
    tables = [attrs.asdict(setting.numbers) for setting in settings]
    varying = [key for key in tables[0] if len({table[key] for table in tables}) > 1] or list(tables[0])
    return [", ".join(_label(key, table[key]) for key in varying) for table in tables]


def _label(key: str, value: str | int | bool) -> str:
    if key == "summarizer":
        return str(value)
    if isinstance(value, bool):
        return f"mass correction {'on' if value else 'off'}"
    return f"{key} {value}"


def _losses(curve: Sequence[CurvePoint]) -> list[float]:
    return [point.figures.delta_nll for point in curve]


def _divergences(curve: Sequence[CurvePoint]) -> list[float]:
    """A divergence of exactly 0, where a query reads no memory token, has no place on a log scale."""
    return [point.figures.kl if point.figures.kl > 0 else float("nan") for point in curve]


def _decorate(axes: Axes, report: DriftReport) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, report.length)
    if report.length > report.context:
        axes.axvline(report.context, color=_GREY, linewidth=0.9, linestyle="--")
        axes.annotate(
            "training context",
            (report.context, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            color=_GREY,
            fontsize=8,
        )


def _title(report: DriftReport, name: str) -> str:
    documents = f"{len(report.offsets)} document{'s' if len(report.offsets) > 1 else ''}"
    return (
        f"Long-sequence attention of {name} against exact attention\n"
        f"{documents} of {report.length:,} positions, {report.data['name']}"
    )
