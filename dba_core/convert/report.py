"""What a conversion cost and saved: as data, and as Markdown. Made by `dba_core.convert.job`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from dba_core.convert.decouple import Recipe
from dba_core.evaluation.cached_loss import TextLoss
from dba_core.runs.summary import as_plain

SCHEMA = 1


@attrs.frozen(kw_only=True)
class VariantReport:
    """One row. bytes_per_token: of the cache, all layers. losses: by text. delta: loss minus the reference's,
    and the standard error of that difference over windows, by text.
    """

    key: str
    name: str
    policy: str
    bytes_per_token: int
    ratio: float
    losses: dict[str, TextLoss]
    delta_nll: dict[str, float]
    delta_std_error: dict[str, float]

    @property
    def mean_perplexity_increase(self) -> float:
        """exp of the mean difference over texts, minus 1."""
        return math.exp(sum(self.delta_nll.values()) / len(self.delta_nll)) - 1.0


@attrs.frozen(kw_only=True)
class ConversionReport:
    """pairs: the semantic channel pairs of each layer and KV head. seconds: by phase."""

    source: str
    family: str
    parameters: int
    recipe: Recipe
    context: int
    calibration: dict[str, Any]
    calibration_tokens: int
    pairs: tuple[tuple[tuple[int, ...], ...], ...]
    variants: tuple[VariantReport, ...]
    healed_steps: int
    seconds: dict[str, float]
    peak_memory_bytes: int
    warnings: tuple[str, ...]
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite is None."""
        plain: dict[str, Any] = as_plain(self)
        return plain

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self.variants[0].losses)


def header(report: ConversionReport) -> tuple[str, ...]:
    """The columns of the table of variants."""
    return ("cache", "bytes per token", "smaller", *(f"NLL {name}" for name in report.texts), "perplexity")


def rows(report: ConversionReport) -> Iterable[tuple[str, ...]]:
    """One row per variant: the reference's losses, then differences with their standard errors."""
    for number, variant in enumerate(report.variants):
        if number == 0:
            cells = [_loss(variant.losses[text]) for text in report.texts]
            mean = "reference"
        else:
            cells = [
                f"{variant.delta_nll[text]:+.4f} ± {_error(variant.delta_std_error[text])}"
                for text in report.texts
            ]
            mean = f"{variant.mean_perplexity_increase:+.2%}"
        yield (variant.name, f"{variant.bytes_per_token:,}", f"{variant.ratio:.2f}x", *cells, mean)


def markdown(report: ConversionReport) -> str:
    """`conversion.md`."""
    recipe = report.recipe
    latent = (
        "one semantic key per KV head" if recipe.latent is None else f"a shared latent of {recipe.latent}"
    )
    lines = [
        f"# {report.source}, decoupled",
        "",
        f"{recipe.pairs} channel pairs of every KV head became semantic (rule `{recipe.rule}`), {latent}; "
        f"calibrated on {report.calibration_tokens:,} tokens of `{report.calibration['name']}`, context "
        f"{report.context}.",
        "",
        _table(header(report), rows(report)),
        "",
        "NLL in nats per token. The first row is the reference, the others are differences to it, with the "
        "standard error of the difference over windows. `perplexity` is the mean over the texts.",
        "",
        "![perplexity against bytes](plots/pareto.png)",
        "",
        "![semantic pairs](plots/pairs.png)",
    ]
    lines += [f"\n**Warning:** {warning}" for warning in report.warnings]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report.seconds.items())
    return "\n".join(
        [*lines, "", f"Time: {seconds}. Peak memory {report.peak_memory_bytes / 2**20:,.0f} MiB.", ""]
    )


def _loss(loss: TextLoss) -> str:
    return f"{loss.nll:.4f} ± {_error(loss.std_error)}"


def _error(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.4f}"


def _table(head: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
