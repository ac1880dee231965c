"""A drift report as text: rows of (name, value) about the comparison, and the table of settings. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from dba_core.runs.rows import Row
from dba_plugins.drift.report import DriftFigures, DriftReport, SettingReport

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


def report_rows(report: DriftReport) -> Iterator[Row]:
    """What was compared with what."""
    yield "Weights", f"{report.checkpoint}, step {report.checkpoint_step}"
    yield "Trained with", f"{report.trained_with}, context {report.context:,}"
    documents = f"{len(report.offsets)} document{'s' if len(report.offsets) > 1 else ''}"
    yield "Text", f"{report.data['name']} ({report.part}): {documents} of {report.length:,} positions"
    yield (
        "Exact attention",
        f"loss {report.exact_nll:.4f} nats per token, {report.exact_keys_per_query:,.1f} keys/query",
    )
    yield "Computed in", f"{report.dtype} on {report.device}"


def setting_rows(report: DriftReport) -> Iterator[tuple[str, ...]]:
    """Two lines per setting: all positions, then those that read memory tokens."""
    for setting in report.settings:
        yield (*_setting_cells(setting), f"all {report.length:,}", *_figure_cells(setting.all))
        if setting.beyond_window is not None:
            yield ("",) * 6 + (
                f"from {setting.first_memory_position:,}",
                *_figure_cells(setting.beyond_window),
            )


def _setting_cells(setting: SettingReport) -> tuple[str, ...]:
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
