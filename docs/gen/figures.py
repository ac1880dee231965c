"""Draws the figures of the concept pages from the library's own numbers.

A page says `![...](../assets/figures/NAME.svg)`; the file exists in the built site only. Lines and text are
grey, and the background is transparent, so that a figure can be read in the light and in the dark scheme.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files

from dba_core.config import KVCachePolicy

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

GREY, INDIGO, ORANGE, TEAL = "#808490", "#5c6bc0", "#ef8a3c", "#2a9d8f"
STYLE = {
    "svg.hashsalt": "dba",
    "font.size": 11,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlecolor": GREY,
}
POLICIES = (
    "ksem=fp32,kgeo=fp32,v=fp32",
    "ksem=fp16,kgeo=fp16,v=fp16",
    "ksem=q8_0@32,kgeo=q8_0@32,v=q8_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=q4_0@32,kgeo=q4_0@32,v=q4_0@32",
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """mkdocs calls this with the files of the site; the figures are added to them."""
    for name, draw in FIGURES.items():
        files.append(File.generated(config, f"assets/figures/{name}.svg", content=as_svg(draw)))
    return files


def as_svg(draw: Callable[[], Figure]) -> bytes:
    """The same bytes for the same numbers: no date, fixed identifiers."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def masks(queries: int = 3, keys: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Which of `keys` the last `queries` tokens see: aligned at the top left, at the bottom right."""
    rows, columns = np.arange(queries)[:, None], np.arange(keys)[None, :]
    return columns <= rows, columns <= rows + keys - queries


def causal_masks() -> Figure:
    """The same 3 queries over 7 keys under both alignments."""
    figure = Figure(figsize=(7, 2.2))
    titles = ("top left: is_causal=True", "bottom right: what is meant")
    for axes, mask, title, color in zip(
        figure.subplots(1, 2), masks(), titles, (ORANGE, INDIGO), strict=True
    ):
        grid(axes, mask.astype(int), ("none", color))
        axes.set_title(title)
        axes.set_xlabel("key token")
        axes.set_ylabel("query token")
        axes.set_yticks(np.arange(3) + 0.5, ["4", "5", "6"])
        axes.set_xticks(np.arange(7) + 0.5, [str(n) for n in range(7)])
    figure.tight_layout()
    return figure


def grid(axes: object, cells: np.ndarray, colors: tuple[str, ...]) -> None:
    """One square per cell, row 0 at the top; cell c has colors[c]."""
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

    assert isinstance(axes, Axes)
    for (row, column), cell in np.ndenumerate(cells):
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colors[cell], edgecolor=GREY, linewidth=0.7))
    axes.set(xlim=(0, cells.shape[1]), ylim=(cells.shape[0], 0), aspect="equal")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def long_sequence_cells(tokens: int, *, block: int, window: int, chunk: int) -> np.ndarray:
    """[T, T]: 0 not seen, 1 read through the memory token of its block, 2 read by itself."""
    cells = np.zeros((tokens, tokens), dtype=int)
    for start in range(0, tokens, chunk):
        local = max(0, start - window) // block * block
        for query in range(start, min(start + chunk, tokens)):
            cells[query, :local] = 1
            cells[query, local : query + 1] = 2
    return cells


def long_sequence() -> Figure:
    """What the queries of each chunk read of 24 tokens: blocks of 4, window 4, chunks of 4."""
    figure = Figure(figsize=(5.2, 5.2))
    axes = figure.subplots()
    grid(axes, long_sequence_cells(24, block=4, window=4, chunk=4), ("none", ORANGE, INDIGO))
    axes.set_xlabel("key token (orange: through its block's memory token, indigo: by itself)")
    axes.set_ylabel("query token")
    axes.set_xticks(range(0, 25, 4))
    axes.set_yticks(range(0, 25, 4))
    return figure


def cache_bytes() -> Figure:
    """Bytes per token and layer of 8 heads, widths 32, 64 and 64, under five policies."""
    from dba_core.cache.bytes import bytes_per_token
    from dba_core.contracts import AttentionShape

    shape = AttentionShape(
        d_model=1024, n_heads=8, n_kv_heads=8, sem_head_dim=32, geo_head_dim=64, v_head_dim=64
    )
    sizes = [bytes_per_token(shape, KVCachePolicy.parse(text)) for text in POLICIES]
    figure = Figure(figsize=(5.2, 2.8))
    axes = figure.subplots()
    bars = axes.barh(
        [text.replace("@32", "").replace(",", "\n", 1) for text in POLICIES], sizes, color=INDIGO
    )
    axes.bar_label(bars, [f" {size:,.0f}" for size in sizes])
    axes.invert_yaxis()
    axes.set_xlabel("bytes per token and layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, max(sizes) * 1.2)
    return figure


def online_softmax_states(scores: np.ndarray, block: int) -> list[tuple[float, float]]:
    """(m, l) after each block of scores: the running maximum, and the sum of e^(score - m)."""
    m, total, states = -np.inf, 0.0, []
    for start in range(0, len(scores), block):
        part = scores[start : start + block]
        new = max(m, float(part.max()))
        total = total * float(np.exp(m - new)) + float(np.exp(part - new).sum())
        m = new
        states.append((m, total))
    return states


def online_softmax() -> Figure:
    """Forty scores in blocks of 10: the maximum so far, and m + log l, in the end the log-sum-exp."""
    scores = np.random.default_rng(3).normal(0, 1.5, 40)
    states = online_softmax_states(scores, 10)
    ends = np.arange(1, 5) * 10
    figure = Figure(figsize=(7, 2.8))
    axes = figure.subplots()
    axes.bar(np.arange(40) + 0.5, scores, color=GREY, alpha=0.5, label="score of a key")
    axes.step([0, *ends], [states[0][0], *(m for m, _ in states)], where="pre", color=ORANGE, label="m")
    axes.plot(ends, [m + np.log(total) for m, total in states], "o-", color=INDIGO, label="m + log l")
    for end in ends[:-1]:
        axes.axvline(end, color=GREY, linewidth=0.5, linestyle=":")
    axes.set_xlabel("key token, in blocks of 10")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), labelcolor=GREY)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "causal-masks": causal_masks,
    "long-sequence": long_sequence,
    "cache-bytes": cache_bytes,
    "online-softmax": online_softmax,
}
