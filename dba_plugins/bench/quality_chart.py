"""The picture of bench.quality: what each KV policy loses, over the bytes of a token, as PNG.

Points are numbered, since a dozen policies stand close together; the list beside them says which is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dba_core.report import TITLE, Report, drawn, save_png

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1661b", "#6b6b6b"
_DPI = 150
Row = Mapping[str, Any]


def quality_chart(path: Path, report: Report) -> None:
    """Loss against the fp32 cache, and KL with the frontier, over bytes per token; bars: standard errors."""
    rows = sorted(report.rows, key=lambda row: (row["bytes_per_token"], row["kl"]))
    figure = Figure(figsize=(11.0, 4.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    loss, kl, names = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.62))
    _points(loss, rows, "delta_nll", "std_error", "loss against the fp32 cache (nats per token)")
    loss.axhline(0.0, color=_GREY, linewidth=0.8)
    _points(kl, rows, "kl", "kl_std_error", "KL from the fp32 cache (nats per token)")
    front = [row for row in rows if row["frontier"]]
    kl.plot(
        [row["bytes_per_token"] for row in front],
        [row["kl"] for row in front],
        color=_ORANGE,
        linewidth=1.0,
        zorder=1,
    )
    names.axis("off")
    for number, row in enumerate(rows):
        names.text(
            0.0,
            1.0 - (number + 0.5) / len(rows),
            f"{number + 1}  {short_policy(row['policy'])}",
            color=_color(row),
            fontsize=8.5,
            va="center",
        )
    names.set_title("k_sem, k_geo, v; orange: frontier", fontsize=9, loc="left")
    figure.suptitle(drawn(report.title, longest=TITLE), fontsize=10.5)
    save_png(figure, path)


def short_policy(text: str) -> str:
    """ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=0 -> q4_0, q8_0, q4_0: without blocks of 32 and no window."""
    formats, _, residual = text.rpartition(",resid=")
    parts = [part.partition("=")[2].removesuffix("@32") for part in formats.split(",")]
    label = parts[0] if len(set(parts)) == 1 else ", ".join(parts)
    return label if residual == "0" else f"{label}, newest {residual} in fp16"


def _points(axes: Axes, rows: Sequence[Row], value: str, error: str, label: str) -> None:
    """One point per policy with its error and number, bytes on a logarithmic axis."""
    groups: dict[float, int] = {}
    for number, row in enumerate(rows):
        x, y = row["bytes_per_token"], row[value]
        bar = row[error] if row[error] == row[error] else 0.0  # NaN: a single window
        axes.errorbar(x, y, yerr=bar, color=_color(row), marker="o", markersize=4.5, linewidth=1.0, capsize=2)
        place = groups[x] = groups.get(x, -1) + 1
        side = 1 if place % 2 == 0 else -1  # policies of equal size: numbers on both sides
        axes.annotate(
            str(number + 1),
            (x, y),
            xytext=(side * (7 + 10 * (place // 2 % 2)), 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8.5,
            color=_color(row),
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axes.margins(x=0.16, y=0.08)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("KV cache, bytes per token (all layers, residual window included)")
    axes.set_ylabel(label)


def _color(row: Row) -> str:
    return _ORANGE if row["frontier"] else _BLUE
