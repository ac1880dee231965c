"""From sums per position to the figures of a report."""

from __future__ import annotations

import itertools

import attrs
import numpy as np

from dba_core.evaluation.metrics import FidelityAccumulator
from dba_core.runs.long_sequence import numbers_of
from dba_plugins.drift.logits import SettingDrift, keys_per_query
from dba_plugins.drift.report import CurvePoint, DriftFigures, SettingReport

#: Points of a curve over positions.
CURVE_POINTS = 32


def setting_report(drift: SettingDrift, *, own: str) -> SettingReport:
    """The figures of one setting over all positions, beyond the window, per document and along positions.

    own: the model's own summarizers, for a setting that names none.
    """
    total, plan = drift.total, drift.plan
    return SettingReport(
        numbers=numbers_of(drift.config, own=own),
        exact=plan.exact,
        first_memory_position=None if plan.exact else plan.exact_stop,
        keys_per_query=keys_per_query(plan),
        all=figures(total, 0, plan.length),
        beyond_window=None if plan.exact else figures(total, plan.exact_stop, plan.length),
        documents=tuple(figures(document, 0, plan.length) for document in drift.documents),
        curve=tuple(
            CurvePoint(start=start, stop=stop, figures=figures(total, start, stop))
            for start, stop in curve_bins(plan.length)
        ),
    )


def curve_bins(length: int) -> list[tuple[int, int]]:
    """At most 32 stretches of positions, as even as whole numbers allow."""
    edges = np.linspace(0, length, min(CURVE_POINTS, length) + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def figures(accumulator: FidelityAccumulator, start: int, stop: int) -> DriftFigures:
    """Over positions start .. stop-1."""
    curves = accumulator.curves()
    tokens = curves.tokens[start:stop]
    exact_nll = float((curves.reference_nll[start:stop] * tokens).sum() / tokens.sum())
    return DriftFigures(**attrs.asdict(accumulator.result(start=start, stop=stop)), exact_nll=exact_nll)
