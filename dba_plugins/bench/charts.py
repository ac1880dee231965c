"""The pictures of measurements, as PNG. Imported when they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from dba_core.report import TITLE, Report, drawn, save_png

_DPI = 150
Draw = Callable[[Path, Report], None]


def lines_over_length(path: Path, report: Report, *, value: str, label: str, panel: Sequence[str]) -> None:
    """`value` over the number of tokens, one line per name, one panel per combination of the `panel` keys."""
    panels: dict[tuple[Any, ...], list[Any]] = {}
    for row in report.rows:
        panels.setdefault(tuple(row[key] for key in panel), []).append(row)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.2, 3.6 * lines + 0.9), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    names = list(dict.fromkeys(row["name"] for row in report.rows))
    colors = colormaps["tab10"] if len(names) <= 10 else colormaps["tab20"]
    for number, (key, rows) in enumerate(panels.items()):
        axes: Axes = grid[number // columns][number % columns]
        for index, name in enumerate(names):
            points = [(row["length"], row[value]) for row in rows if row["name"] == name]
            if not points:  # not everyone takes part in every panel
                continue
            own = any(row.get("kind") == "backend" for row in rows if row["name"] == name)
            axes.plot(
                *zip(*points, strict=True),
                color=colors(index),
                marker="o" if own else "s",
                markersize=4,
                linewidth=2.0 if own else 1.2,
                linestyle="-" if own else "--",
                label=drawn(_short(name)),
            )
        axes.set_title(drawn(", ".join(f"{k} {v}" for k, v in zip(panel, key, strict=True))), fontsize=9)
        _log_axes(axes, sorted({row["length"] for row in report.rows}))
    for empty in range(len(panels), lines * columns):
        grid[empty // columns][empty % columns].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("cached tokens", fontsize=9)
    figure.supylabel(label, fontsize=10)
    named: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    per_line = 4 if columns > 1 else 2
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=per_line, frameon=False, fontsize=8
    )
    figure.suptitle(drawn(report.title, longest=TITLE), fontsize=10.5)
    save_png(figure, path)


def decode_chart(path: Path, report: Report) -> None:
    """Milliseconds over the cached tokens."""
    panel = ["threads", "batch"]
    if len({row["null"] for row in report.rows}) > 1:
        panel.append("null")
    lines_over_length(
        path,
        report,
        value="ms",
        label="milliseconds per layer and token",
        panel=("threads", "batch", "null")
        if len({row["null"] for row in report.rows}) > 1
        else ("threads", "batch"),
    )


def model_chart(path: Path, report: Report) -> None:
    """Tokens per second over the context."""
    panel = ("phase", "threads", "batch")
    lines_over_length(path, report, value="tokens_per_second", label="tokens per second", panel=panel)


def bars(path: Path, report: Report) -> None:
    """The median time of each row, with its quartiles; for short tables."""
    labels = [
        drawn(" ".join(str(row[key]) for key in ("tokens", "name") if key in row and row[key] is not None))
        for row in report.rows
    ]
    figure = Figure(figsize=(8.0, 1.2 + 0.42 * len(labels)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    medians = [row["ms"] for row in report.rows]
    spread = [
        [row["ms"] - row["low_ms"] for row in report.rows],
        [row["high_ms"] - row["ms"] for row in report.rows],
    ]
    axes.barh(labels, medians, xerr=spread, color="#1f5fa8", ecolor="#6b6b6b", height=0.62)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds (median; quartiles)")
    axes.set_title(drawn(report.title, longest=TITLE), fontsize=10.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_png(figure, path)


def _short(name: str) -> str:
    """A policy in a name without what all of them have: "dba, q4_0/q8_0/q4_0, resid 128"."""
    for long, short in (
        (",resid=0", ""),
        (",resid=", ", resid "),
        ("ksem=", ""),
        (",kgeo=", "/"),
        (",v=", "/"),
    ):
        name = name.replace(long, short)
    return name.replace("@32", "")


def _log_axes(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
