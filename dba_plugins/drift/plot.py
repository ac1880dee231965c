"""The picture of a drift, as PNG: loss difference and divergence along the positions. Imported to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dba_core.report import drawn, save_png
from dba_plugins.drift.findings import CurvePoint, DriftFindings, DriftOfSetting

_DPI = 150
_GREY = "#6b6b6b"
_LEGEND_COLUMNS = 3
_SHORT = {"local_window": "window", "mem_block": "block", "q_chunk": "chunk"}


def drift_curves(path: Path, found: DriftFindings, *, name: str) -> None:
    """Draw the curve of every setting."""
    labels = setting_labels(found.settings)
    legend_rows = -(-len(labels) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(8.6, 6.0 + 0.22 * legend_rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    loss, divergence = figure.subplots(2, 1, sharex=True)
    colors = colormaps["tab10"] if len(labels) <= 10 else colormaps["viridis"].resampled(len(labels) + 1)
    for number, (setting, label) in enumerate(zip(found.settings, labels, strict=True)):
        edges = [point.start for point in setting.curve] + [found.length]
        loss.stairs(_losses(setting.curve), edges, baseline=None, color=colors(number), label=label)
        divergence.stairs(_divergences(setting), edges, baseline=None, color=colors(number))
    for axes in (loss, divergence):
        _decorate(axes, found)
    if found.length > found.context:
        loss.annotate(
            "training context",
            (found.context, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=_GREY,
            fontsize=8,
        )
    loss.set_ylabel("loss minus exact loss\n(nats per token)")
    divergence.set_ylabel("KL from the exact distribution\n(nats per token)")
    divergence.set_xlabel("position in the document")
    if not all(setting.exact for setting in found.settings):
        divergence.set_yscale("log")
    figure.suptitle(_title(found, name), fontsize=10.5)
    figure.legend(
        loc="outside lower center", ncols=min(_LEGEND_COLUMNS, len(labels)), frameon=False, fontsize=8
    )
    save_png(figure, path)


def setting_labels(settings: Sequence[DriftOfSetting]) -> list[str]:
    """What tells each setting from the others; all its numbers where nothing does."""
    tables = [attrs.asdict(setting.numbers) for setting in settings]
    varying = [key for key in tables[0] if len({table[key] for table in tables}) > 1] or list(tables[0])
    return [", ".join(_label(key, table[key]) for key in varying) for table in tables]


def _label(key: str, value: str | int | bool) -> str:
    if key == "summarizer":
        return drawn(str(value))
    if isinstance(value, bool):
        return f"mass correction {'on' if value else 'off'}"
    return f"{_SHORT[key]} {value}"


def _losses(curve: Sequence[CurvePoint]) -> list[float]:
    return [point.figures.delta_nll for point in curve]


def _divergences(setting: DriftOfSetting) -> list[float]:
    """Where no query reads a memory token the divergence is 0 but for rounding: no place on a log scale."""
    if setting.first_memory_position is None:
        return [point.figures.kl for point in setting.curve]
    first = setting.first_memory_position
    return [point.figures.kl if point.stop > first else float("nan") for point in setting.curve]


def _decorate(axes: Axes, report: DriftFindings) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, report.length)
    if report.length > report.context:
        axes.axvline(report.context, color=_GREY, linewidth=0.9, linestyle="--")


def _title(report: DriftFindings, name: str) -> str:
    documents = f"{len(report.offsets)} document{'s' if len(report.offsets) > 1 else ''}"
    return (
        f"Long-sequence attention of {drawn(name)} against exact attention\n"
        f"{documents} of {report.length:,} positions, {drawn(report.data['name'])}"
    )
