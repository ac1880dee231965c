"""The pictures of a conversion, as PNG: perplexity against bytes, and which pairs became semantic.

Imported when they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dba_core.report import TITLE, drawn, save_png

_DPI = 150
_LINEAR = 5.0  # percent up to which the axis of the increase is linear
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1661b", "#6b6b6b"


@attrs.frozen(kw_only=True)
class Point:
    """One cache. increase: of the perplexity, 0.01 for one percent. own: drawn as ours, not as compared."""

    name: str
    bytes_per_token: float
    increase: float
    own: bool = False


def pareto(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Perplexity increase over bytes per token; the line joins the points that no other one beats."""
    figure = Figure(figsize=(8.0, 5.0), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = frontier(points)
    axes.plot(
        [point.bytes_per_token for point in front],
        [100 * point.increase for point in front],
        color=_GREY,
        linewidth=1.0,
        zorder=1,
    )
    for point in points:
        color = _ORANGE if point.own else _BLUE
        axes.scatter(point.bytes_per_token, 100 * point.increase, color=color, s=34, zorder=2)
    for point, (dx, dy, align) in zip(points, _label_places(points), strict=True):
        axes.annotate(
            drawn(point.name),
            (point.bytes_per_token, 100 * point.increase),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
            fontsize=8,
            color=_ORANGE if point.own else _BLUE,
        )
    axes.set_xlabel("KV cache, bytes per token (all layers)")
    axes.set_ylabel("perplexity increase (%)")
    if max(point.increase for point in points) > 2 * _LINEAR / 100:
        axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.0)
        axes.yaxis.set_major_locator(FixedLocator([0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500, 1000]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.16, y=0.12)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(drawn(title, longest=TITLE), fontsize=10.5)
    save_png(figure, path)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both bytes and perplexity, fewest bytes first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes_per_token, p.increase)):
        if not best or point.increase < best[-1].increase:
            best.append(point)
    return best


def pair_map(path: Path, pairs: Sequence[Sequence[Sequence[int]]], *, n_pairs: int, title: str) -> None:
    """In how many KV heads of each layer a pair is semantic. Pair 0 turns fastest."""
    counts = np.zeros((len(pairs), n_pairs), dtype=int)
    for layer, heads in enumerate(pairs):
        for head in heads:
            counts[layer, list(head)] += 1
    heads_per_layer = len(pairs[0])
    figure = Figure(figsize=(8.0, 1.6 + 0.13 * len(pairs)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(
        counts, aspect="auto", cmap="cividis", vmin=0, vmax=heads_per_layer, interpolation="nearest"
    )
    axes.set_xlabel("channel pair (0 turns fastest)")
    axes.set_ylabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, ax=axes, ticks=range(heads_per_layer + 1))
    bar.set_label("KV heads in which it is semantic")
    axes.set_title(drawn(title, longest=TITLE), fontsize=10.5)
    save_png(figure, path)


def _label_places(points: Sequence[Point]) -> list[tuple[int, int, str]]:
    """To the right of its point, or to the left where another point stands close to the right; higher or
    lower where one stands right above or below it.
    """
    widest = max(point.bytes_per_token for point in points)
    highest = max(_height(abs(point.increase)) for point in points) or 1.0
    places: list[tuple[int, int, str]] = []
    for point in points:
        near = [
            other
            for other in points
            if other is not point and abs(_height(other.increase) - _height(point.increase)) < 0.06 * highest
        ]
        right = any(0 < other.bytes_per_token - point.bytes_per_token < 0.3 * widest for other in near)
        beside = [
            other for other in near if abs(other.bytes_per_token - point.bytes_per_token) < 0.02 * widest
        ]
        shift = 0
        if beside:
            shift = 7 if all(point.increase >= other.increase for other in beside) else -7
        last = point.bytes_per_token > 0.75 * widest
        places.append((-7, shift, "right") if right or last else (7, shift, "left"))
    return places


def _height(increase: float) -> float:
    """Where the axis puts an increase: as it is up to _LINEAR, then its logarithm."""
    percent = 100 * increase
    return percent if percent <= _LINEAR else _LINEAR * (1.0 + math.log10(percent / _LINEAR))
