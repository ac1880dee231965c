"""The picture of `dba tune`, as PNG: what every format of every tensor costs alone, and whole policies.

Imported when it is drawn.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dba_core.report import drawn, save_png
from dba_plugins.tune.measure import TuneFindings
from dba_plugins.tune.policy_search import TENSORS, combinations
from dba_plugins.tune.search import frontier

_DPI = 150
_COLORS = dict(zip(TENSORS, ("#1f5fa8", "#d1661b", "#3b8a4a"), strict=True))
_GREY = "#6b6b6b"


def tune_chart(path: Path, found: TuneFindings, *, name: str) -> None:
    """Left: one line per tensor over its bytes. Right: predicted and measured KL of whole policies."""
    figure = Figure(figsize=(10.5, 4.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _singles(left, found)
    _tried(right, found)
    figure.suptitle(chart_title(found, name=name), fontsize=9.5)
    save_png(figure, path)


def chart_title(found: TuneFindings, *, name: str) -> str:
    """The goal, and what the chosen policy (else the run's own) takes at the run's and the target context."""
    which = "the run's own" if found.chosen is None else "chosen"
    policy = found.own_policy if found.chosen is None else found.chosen
    return f"{drawn(name)}: {drawn(found.goal)}\n{which} {found.bytes_line(policy)}"


def _singles(axes: Axes, found: TuneFindings) -> None:
    several = len(found.search.windows) > 1
    for tensor in TENSORS:
        points = sorted(
            (
                single.bytes_per_token,
                single.kl,
                f"{single.format.short} resid={single.residual}" if several else single.format.short,
            )
            for single in found.search.singles
            if single.tensor == tensor and single.kl > 0  # fp16 is the reference: 0 by definition
        )
        if not points:
            continue
        color = _COLORS[tensor]
        axes.plot(
            [p[0] for p in points], [p[1] for p in points], "o", color=color, label=tensor, markersize=4
        )
        for size, kl, text in points:
            axes.annotate(
                text, (size, kl), xytext=(4, 3), textcoords="offset points", fontsize=7, color=color
            )
    axes.set_xlabel("bytes per token of the tensor (all layers), without residual window")
    axes.set_ylabel("KL, the other tensors in fp16 (nats per token)")
    axes.set_title("one tensor at a time", fontsize=9.5)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _tried(axes: Axes, found: TuneFindings) -> None:
    predicted = frontier(combinations(found.search.singles, found.search.sizes))
    axes.plot(
        [each.bytes_per_token for each in predicted if each.predicted > 0],
        [each.predicted for each in predicted if each.predicted > 0],
        color=_GREY,
        linewidth=1.0,
        zorder=1,
        label="predicted, best of all",
    )
    for each in found.search.result.tried:
        chosen = each is found.search.result.chosen
        axes.plot(
            each.candidate.bytes_per_token,
            each.measured.kl,
            "*" if chosen else "o",
            color="#d1661b" if chosen else "#1f5fa8" if each.good else _GREY,
            markersize=11 if chosen else 5,
            label="chosen" if chosen else None,
        )
    if found.own.kl > 0:
        own_size = found.per_token(found.own_policy, found.target_context)
        axes.plot(own_size, found.own.kl, "x", color="#3b8a4a", label="the run's own policy")
    axes.set_xlabel(f"bytes per token at {found.target_context:,} tokens (all layers, window included)")
    axes.set_ylabel("KL against exact attention (nats per token)")
    axes.set_title("whole policies; points are measured", fontsize=9.5)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axes.margins(x=0.16, y=0.12)
    axes.set_yscale("log")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
