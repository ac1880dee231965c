"""The pictures of a run, as PNG: losses over steps, mean gate per layer and head, KV memory over context.

    mean[layer][head] = average over tokens t of g_head(x_t)     0 geometric, 0.5 neutral, 1 semantic

Drawn with matplotlib's Agg canvas, without pyplot and its global state. Imported when a job draws.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor, nn

from dba_core.cache.bytes import LONG_CONTEXT, MemoryRow, memory_table
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.model.language_model import LanguageModel, inference
from dba_core.report import drawn, save_png
from dba_core.runs.folder import RunFolder
from dba_core.runs.pages import human_bytes, times_smaller
from dba_core.runs.prepare import Prepared

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1661b", "#6b6b6b"
_DPI = 150
#: Held-out tokens that the gates are averaged over, at most.
_GATE_TOKENS = 8192
#: The labels of two curves are at least so far apart, as a factor.
_APART = 1.45
#: What a layer without a gate scores like.
_NEUTRAL = 0.5


def draw_plots(prepared: Prepared, folder: RunFolder, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name of the plot -> its path inside the run's folder, or the reason why it was left out."""
    name, model, held_out = prepared.config.name, prepared.model.config, prepared.corpus.held_out
    loss, gate, memory = (folder.plots / f"{plot}.png" for plot in ("loss", "gate", "kv_memory"))
    left_out = {}
    if metrics:
        loss_curves(loss, metrics, name=name)
    else:
        left_out["loss"] = "left out: nothing was logged"
    tokens = min(_GATE_TOKENS, len(held_out) - 1)
    batch = prepared.config.training.batch_size
    means = gate_means(prepared.model, held_out, context=model.context, limit_tokens=tokens, batch_size=batch)
    if means is not None:
        gate_map(gate, means, tokens=tokens, name=name)
    else:
        plugin = prepared.names("gate")
        left_out["gate"] = f"left out: the gate plugin {plugin!r} leaves the model without a gate"
    shape, policy = model.attention.shape, prepared.kv_policy
    memory_curves(memory, shape, model.n_layers, policy, context=model.context, name=name)
    files = {path.stem: str(path.relative_to(folder.path)) for path in (loss, gate, memory)}
    return {**files, **left_out}


def gate_means(
    model: LanguageModel, tokens: Tokens, *, context: int, limit_tokens: int, batch_size: int
) -> list[list[float]] | None:
    """Mean gate [n_layers][n_heads]; None for a model without gates. A layer without one is neutral, 0.5."""
    gates = {layer: each.gate for layer, each in enumerate(model.attentions) if each.gate is not None}
    if not gates:
        return None
    n_heads = model.config.attention.shape.n_heads
    sums = {layer: torch.zeros(n_heads, dtype=torch.float64, device=model.device) for layer in gates}
    seen = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], gate: Tensor, *, layer: int) -> None:
        sums[layer] += gate.double().sum(dim=(0, 2, 3))  # [B,H,T,1] -> [H]

    with contextlib.ExitStack() as hooks, inference(model):
        for layer, gate in gates.items():
            hooks.callback(gate.register_forward_hook(functools.partial(add, layer=layer)).remove)
        for x, _ in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=batch_size):
            model(x.to(model.device))
            seen += x.numel()
    neutral = [_NEUTRAL] * n_heads
    return [
        (sums[layer] / seen).tolist() if layer in gates else neutral for layer in range(len(model.attentions))
    ]


def loss_curves(path: Path, metrics: Sequence[Mapping[str, Any]], *, name: str) -> None:
    """Training loss of the logged steps, held-out loss of the evaluations: the lines of metrics.jsonl."""
    figure, axes = _figure()
    train = _points(metrics, "train")
    held_out = _points(metrics, "eval")
    if train:
        axes.plot(*zip(*train, strict=True), color=_BLUE, linewidth=1.2, label="training batch")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            color=_ORANGE,
            linewidth=1.8,
            marker="o",
            markersize=4,
            label="held-out text",
        )
        step, loss = min(held_out, key=lambda point: point[1])
        is_late = step > max(point[0] for point in held_out) / 2
        axes.annotate(
            f"lowest {loss:.3f} at step {step}",
            (step, loss),
            xytext=(-4 if is_late else 4, 18),
            textcoords="offset points",
            ha="right" if is_late else "left",
            color=_ORANGE,
            arrowprops={"arrowstyle": "-", "color": _ORANGE, "linewidth": 0.8},
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross entropy (nats per token)")
    axes.set_title(f"Loss while training {drawn(name)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if train or held_out:
        axes.legend(frameon=False)
    save_png(figure, path)


def gate_map(path: Path, means: Sequence[Sequence[float]], *, tokens: int, name: str) -> None:
    """Mean gate of every layer (row) and head (column) over held-out tokens, with its number."""
    n_layers, n_heads = len(means), len(means[0])
    figure, axes = _figure(
        width=max(5.0, 2.2 + 0.62 * n_heads), height=max(2.8, 1.7 + 0.42 * n_layers), grid=False
    )
    spread = _gate_spread(means)
    image = axes.imshow(means, vmin=0.5 - spread, vmax=0.5 + spread, cmap="RdBu_r", aspect="auto")
    for layer, row in enumerate(means):
        for head, value in enumerate(row):
            color = "white" if abs(value - 0.5) > 0.6 * spread else "black"
            axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(n_heads))
    axes.set_yticks(range(n_layers))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(f"Mean gate of {drawn(name)} over {tokens:,} held-out tokens", fontsize=11)
    bar = figure.colorbar(image, ax=axes, ticks=[0.5 - spread, 0.5, 0.5 + spread])
    bar.ax.set_yticklabels([f"{0.5 - spread:g} geometric", "0.5 neutral", f"{0.5 + spread:g} semantic"])
    for spine in axes.spines.values():
        spine.set_visible(False)
    save_png(figure, path)


def memory_curves(
    path: Path, shape: AttentionShape, n_layers: int, policy: KVCachePolicy, *, context: int, name: str
) -> None:
    """KV bytes of one sequence against its length: the policy, fp16, and fp16 standard attention.

    context: the model's own, which is marked; what lies beyond it is arithmetic.
    """
    powers = [1 << power for power in range(7, LONG_CONTEXT.bit_length())]
    contexts = sorted({*powers, context})
    chosen = memory_table(shape, n_layers, policy, contexts)
    fp16 = memory_table(shape, n_layers, KVCachePolicy.uniform("fp16"), contexts)
    figure, axes = _figure(width=7.6)
    curves = (
        ("standard attention, fp16", [row.standard_bytes for row in chosen], _GREY),
        ("this layout, fp16", [row.kv_bytes for row in fp16], _ORANGE),
        ("this layout, KV policy of the run", [row.kv_bytes for row in chosen], _BLUE),
    )
    for label, values, color in curves:
        axes.plot(contexts, values, color=color, linewidth=1.8, marker="o", markersize=3.5, label=label)
    height = math.inf
    for _, values, color in curves:
        height = min(values[-1], height / _APART)
        axes.annotate(
            human_bytes(values[-1]),
            (contexts[-1], height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    _log_axes(axes, [each for each in contexts if each in powers or each < powers[0]])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("KV cache of one sequence, all layers")
    axes.axvline(context, color=_GREY, linewidth=0.9, linestyle=":")
    axes.set_title(memory_title(chosen[contexts.index(context)], chosen[-1], policy, name=name))
    axes.title.set_fontsize(10.5)
    axes.legend(frameon=False, loc="upper left")
    save_png(figure, path)


def memory_title(own: MemoryRow, long: MemoryRow, policy: KVCachePolicy, *, name: str) -> str:
    """What the picture claims: the ratio at the model's own context first, that at 128k for scale."""
    claim = f"{times_smaller(own.kv_bytes, own.standard_bytes)} fp16 standard attention at its context of"
    scale = f"\nfor scale, at 128k: {times_smaller(long.kv_bytes, long.standard_bytes)} it"
    beyond = scale if own.context < long.context else ""
    return f"KV memory of {drawn(name)}: {claim} {own.context:,}{beyond}\n{policy.short}"


def _figure(*, width: float = 7.0, height: float = 4.3, grid: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, axes


def _points(metrics: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[int, float]]:
    """(step, loss) of the lines of one kind whose loss is a number."""
    return [(row["step"], row["loss"]) for row in metrics if row["kind"] == kind and row["loss"] is not None]


def _log_axes(axes: Axes, contexts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(contexts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value).replace(".0 ", " ")))
    axes.set_xlim(contexts[0] * 0.85, contexts[-1] * 3.2)


def _short(context: float) -> str:
    """131072 -> "128k"."""
    return f"{context / 1024:g}k" if context >= 1024 else f"{context:g}"


def _gate_spread(means: Sequence[Sequence[float]]) -> float:
    """Half the colour range around 0.5: wide enough for the values, narrow enough to tell them apart."""
    farthest = max(abs(value - 0.5) for row in means for value in row)
    return next(spread for spread in (0.1, 0.25, 0.5) if farthest <= spread or spread == 0.5)
