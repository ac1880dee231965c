"""The outcome of `dba drift` as data: one attrs tree, its JSON is the plain form (schema number `schema`).

Loss differences are nats per token, positions count from 0 inside a document. A number that is not finite is
null in JSON. Built by runs.drift, shown by drift_rows and drift_plot. No torch.
"""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.report import as_plain
from dba_core.runs.long_sequence import LongSequenceNumbers

#: Raised when a field changes its meaning or goes away.
DRIFT_SCHEMA = 1


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
class SettingReport:
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
class ThresholdReport:
    """A limit of `--fail-above` and the settings above it, as indices into `settings`."""

    metric: str
    limit: float
    exceeded_by: tuple[int, ...]


@attrs.frozen(kw_only=True)
class DriftReport:
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
    settings: tuple[SettingReport, ...]
    thresholds: tuple[ThresholdReport, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"schema": DRIFT_SCHEMA, **as_plain(self)}
