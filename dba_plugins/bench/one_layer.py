"""What the measurements of one attention layer share: random heads, rows against the first, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from dba_core.attention.projections import Heads
from dba_core.report import Column, Report
from dba_plugins.bench.measured import measured
from dba_plugins.bench.timing import Timing

N_HEADS = 8


@attrs.frozen(kw_only=True)
class Row:
    """ratio: the median by that of the reference, below 1 is faster."""

    name: str
    timing: Timing
    ratio: float


def random_heads(tokens: int, widths: tuple[int, int, int], *, seed: int) -> Heads:
    """Random heads [1, 8, tokens, width], queries scaled."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int, scale: float = 1.0) -> Tensor:
        return torch.randn(1, N_HEADS, tokens, width, generator=generator) * scale

    sem, geo, v = widths
    return Heads(
        q_sem=draw(sem, sem**-0.5), q_geo=draw(geo, geo**-0.5), k_sem=draw(sem), k_geo=draw(geo), v=draw(v)
    )


def against_first(timings: dict[str, Timing]) -> list[Row]:
    reference = next(iter(timings.values())).median_ms
    return [
        Row(name=name, timing=timing, ratio=timing.median_ms / reference) for name, timing in timings.items()
    ]


def layer_report(name: str, title: str, found: Mapping[int, Sequence[Row]], *, command: str) -> Report:
    """found: rows by the number of tokens."""
    return measured(
        name=name,
        title=title,
        command=command,
        columns=(
            Column("threads", "threads"),
            Column("tokens", "tokens", "{:,}"),
            Column("name", "what"),
            Column("ms", "ms", "{:.1f}"),
            Column("spread", "quartiles"),
            Column("ratio", "of the first", "{:.2f}x"),
            Column("speedup", "times as fast", "{:.2f}x"),
        ),
        rows=tuple(
            {
                "threads": torch.get_num_threads(),
                "tokens": tokens,
                "name": row.name,
                **row.timing.fields,
                "ratio": row.ratio,
                "speedup": 1 / row.ratio,
            }
            for tokens, rows in found.items()
            for row in rows
        ),
        draw=_draw,
        notes=(
            f"{N_HEADS} heads, one sequence, random tensors; medians in turn; compared with the first row",
        ),
    )


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.charts import bars

    bars(path, report)
