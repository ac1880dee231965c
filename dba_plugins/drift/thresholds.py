"""Limits on drift, `delta_nll=0.05` or `beyond_window.kl=0.1`, for jobs that must fail when it grows.

A limit holds when every setting stays at or below it; a NaN is above every limit. Called by
`dba drift --fail-above` and runs.drift. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from dba_core.errors import DBAError, UsageError, unknown
from dba_plugins.drift.report import DriftReport, SettingReport, ThresholdReport

METRICS = ("delta_nll", "ppl_ratio", "max_abs_logit", "kl")
#: Every metric over all positions, and over those that read a memory token.
NAMES = (*METRICS, *(f"beyond_window.{metric}" for metric in METRICS))


class DriftError(DBAError):
    """The drift is above what was allowed."""


@attrs.frozen
class Threshold:
    """The largest value of `metric` (one of NAMES) that is allowed."""

    metric: str
    limit: float

    def judge(self, settings: Sequence[SettingReport]) -> ThresholdReport:
        """Which settings are above the limit. One without positions beyond the window is below it."""
        values = [setting.value(self.metric) for setting in settings]
        above = [index for index, value in enumerate(values) if value is not None and not value <= self.limit]
        return ThresholdReport(metric=self.metric, limit=self.limit, exceeded_by=tuple(above))


def parse_threshold(text: str) -> Threshold:
    """`metric=number`. Raises UsageError with the nearest metric."""
    name, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(
            f"--fail-above {text!r} is not metric=number; write it as in --fail-above delta_nll=0.05"
        )
    if name not in NAMES:
        raise UsageError(f"--fail-above {text!r}: {unknown('metric', name, NAMES)}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"--fail-above {text!r}: {number!r} is no finite number; write it as in {name}=0.05")
    return Threshold(name, limit)


def check_thresholds(report: DriftReport) -> None:
    """Raise DriftError that names every limit that was exceeded, by how much and by which setting."""
    broken = [_sentence(report, each) for each in report.thresholds if each.exceeded_by]
    if broken:
        raise DriftError(
            f"the drift is above what --fail-above allows: {'; '.join(broken)}. Use a larger local_window or "
            "a smaller mem_block, or allow more"
        )


def _sentence(report: DriftReport, threshold: ThresholdReport) -> str:
    """`kl 0.2 is above 0.1 with summarizer mean, ... (and 2 more settings)`: of the worst setting."""

    def badness(index: int) -> float:
        value = report.settings[index].value(threshold.metric)
        return math.inf if value is None or math.isnan(value) else value

    worst = report.settings[max(threshold.exceeded_by, key=badness)]
    others = len(threshold.exceeded_by) - 1
    more = f" (and {others} more setting{'s' if others > 1 else ''})" if others else ""
    return (
        f"{threshold.metric} {worst.value(threshold.metric):.6g} is above {threshold.limit:g} with "
        f"{worst.numbers.text}{more}"
    )
