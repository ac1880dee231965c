"""What `dba drift` found: one attrs tree, whose plain form is the report's figures, and its tables. No torch.

Loss differences are nats per token, positions count from 0 inside a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from dba_core.runs.evaluate import LongSequenceNumbers
from dba_plugins.drift.request import Threshold


@attrs.frozen(kw_only=True)
class DriftFigures:
    """Long-sequence logits against exact ones over `tokens` positions.

    delta_nll: mean loss minus exact mean loss. ppl_ratio: exp(delta_nll). max_abs_logit: the largest
    difference of any logit. kl: mean divergence from the exact distribution, nats. exact_nll: the exact
    mean loss.
    """

    delta_nll: float
    ppl_ratio: float
    max_abs_logit: float
    kl: float
    exact_nll: float
    tokens: int


@attrs.frozen(kw_only=True)
class CurvePoint:
    """The same over positions start .. stop-1 of every document."""

    start: int
    stop: int
    figures: DriftFigures


@attrs.frozen(kw_only=True)
class DriftOfSetting:
    """One setting of the sweep.

    exact: no query reads a memory token, so the drift is 0 by construction. first_memory_position: the first
    position that reads one, null where `exact`. keys_per_query: keys that a query reads on average. all: over
    every position; beyond_window: from first_memory_position on, null where `exact`. documents: over all
    positions of each one. curve: over all documents, along the positions.
    """

    numbers: LongSequenceNumbers
    exact: bool
    first_memory_position: int | None
    keys_per_query: float
    all: DriftFigures
    beyond_window: DriftFigures | None
    documents: tuple[DriftFigures, ...]
    curve: tuple[CurvePoint, ...]

    def value(self, metric: str) -> float | None:
        """`kl` or `beyond_window.kl`: that number; None where no position is beyond the window."""
        part, _, name = metric.rpartition(".")
        figures = self.beyond_window if part else self.all
        if figures is None:
            return None
        value: float = attrs.asdict(figures)[name]
        return value


@attrs.frozen(kw_only=True)
class JudgedThreshold:
    """A limit and the settings above it, as indices into `settings`. A NaN is above every limit; a setting
    without positions beyond the window is below those of `beyond_window`.
    """

    metric: str
    limit: float
    exceeded_by: tuple[int, ...]

    @classmethod
    def of(cls, threshold: Threshold, settings: Sequence[DriftOfSetting]) -> JudgedThreshold:
        values = [setting.value(threshold.metric) for setting in settings]
        above = [
            index for index, value in enumerate(values) if value is not None and not value <= threshold.limit
        ]
        return cls(metric=threshold.metric, limit=threshold.limit, exceeded_by=tuple(above))


@attrs.frozen(kw_only=True)
class DriftFindings:
    """Everything that `dba drift` says. `settings` is in the order of the sweep.

    data: as in summary.json; part: `held-out`, or `all` of it. context: what the run was trained with;
    trained_with: how. length: positions of one document; offsets: where in the part each document begins;
    tokens: positions compared. exact_nll, exact_keys_per_query: of exact attention on the same tokens.
    """

    run: str
    checkpoint: str
    checkpoint_step: int
    data: dict[str, Any]
    part: str
    context: int
    trained_with: str
    length: int
    offsets: tuple[int, ...]
    tokens: int
    device: str
    dtype: str
    exact_nll: float
    exact_keys_per_query: float
    settings: tuple[DriftOfSetting, ...]
    thresholds: tuple[JudgedThreshold, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> str | None:
        """Every limit that was exceeded, by how much and by which setting; None where none was."""
        broken = [self._sentence(each) for each in self.thresholds if each.exceeded_by]
        if not broken:
            return None
        return (
            f"the drift is above what --fail-above allows: {'; '.join(broken)}. Use a larger local_window or "
            "a smaller mem_block, or allow more"
        )

    def _sentence(self, threshold: JudgedThreshold) -> str:
        """`kl 0.2 is above 0.1 with summarizer mean, ... (and 2 more settings)`: of the worst setting."""

        def badness(index: int) -> float:
            value = self.settings[index].value(threshold.metric)
            return math.inf if value is None or math.isnan(value) else value

        worst = self.settings[max(threshold.exceeded_by, key=badness)]
        others = len(threshold.exceeded_by) - 1
        more = f" (and {others} more setting{'s' if others > 1 else ''})" if others else ""
        return (
            f"{threshold.metric} {worst.value(threshold.metric):.6g} is above {threshold.limit:g} with "
            f"{worst.numbers.text}{more}"
        )


HEADER = (
    "summarizer",
    "mass",
    "window",
    "block",
    "chunk",
    "keys/query",
    "positions",
    "delta_nll",
    "ppl_ratio",
    "kl",
    "max_abs_logit",
)


def fact_rows(found: DriftFindings) -> Iterator[tuple[str, str]]:
    """What was compared with what."""
    yield "Weights", f"{found.checkpoint}, step {found.checkpoint_step}"
    yield "Trained with", f"{found.trained_with}, context {found.context:,}"
    documents = f"{len(found.offsets)} document{'s' if len(found.offsets) > 1 else ''}"
    yield "Text", f"{found.data['name']} ({found.part}): {documents} of {found.length:,} positions"
    yield (
        "Exact attention",
        f"loss {found.exact_nll:.4f} nats per token, {found.exact_keys_per_query:,.1f} keys/query",
    )
    yield "Computed in", f"{found.dtype} on {found.device}"


def setting_rows(found: DriftFindings) -> Iterator[tuple[str, ...]]:
    """Two lines per setting: all positions, then those that read memory tokens."""
    for setting in found.settings:
        yield (*_setting_cells(setting), f"all {found.length:,}", *_figure_cells(setting.all))
        if setting.beyond_window is not None:
            yield ("",) * 6 + (
                f"from {setting.first_memory_position:,}",
                *_figure_cells(setting.beyond_window),
            )


def _setting_cells(setting: DriftOfSetting) -> tuple[str, ...]:
    numbers = setting.numbers
    return (
        numbers.summarizer,
        "on" if numbers.mass_correction else "off",
        f"{numbers.local_window:,}",
        f"{numbers.mem_block:,}",
        f"{numbers.q_chunk:,}",
        f"{setting.keys_per_query:,.1f}",
    )


def _figure_cells(figures: DriftFigures) -> tuple[str, ...]:
    kl = f"{figures.kl:.3e}" if figures.kl else "0"
    return f"{figures.delta_nll:+.5f}", f"{figures.ppl_ratio:.5f}", kl, f"{figures.max_abs_logit:.4g}"
