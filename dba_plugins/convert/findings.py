"""What a conversion cost and saved: one attrs tree, whose plain form is a report's figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from dba_core.cache.bytes import cache_bytes
from dba_core.report import Picture, Report, Table, as_plain
from dba_plugins.convert.comparators import Variant
from dba_plugins.convert.decouple import Recipe
from dba_plugins.convert.recipe_search import Choice, RecipeSearch
from dba_plugins.convert.text_loss import TextLoss
from dba_plugins.tune.distance import Divergence
from dba_plugins.tune.search import Tried, bytes_text

#: Raised when a figure changes its meaning or goes away.
SCHEMA = 2


@attrs.frozen(kw_only=True)
class VariantFindings:
    """One row. bytes_per_token: of a cache of the report's context, all layers, residual window included;
    bytes_per_token_target: of its target context. ratio: of the first. losses: by text. delta: loss minus the
    reference's, and the standard error of that difference over windows, by text.
    """

    key: str
    name: str
    policy: str
    bytes_per_token: float
    bytes_per_token_target: float
    ratio: float
    losses: dict[str, TextLoss]
    delta_nll: dict[str, float]
    delta_std_error: dict[str, float]

    @property
    def mean_perplexity_increase(self) -> float:
        """exp of the mean difference over texts, minus 1."""
        return math.exp(sum(self.delta_nll.values()) / len(self.delta_nll)) - 1.0


@attrs.frozen(kw_only=True)
class SearchRow:
    """What a search measured: a recipe; with a policy also its size per token of the target context, window
    included, its prediction, and whether it keeps the goal.
    """

    pairs: int
    latent: int | None
    policy: str
    bytes_per_token: float | None
    predicted: float | None
    measured: Divergence
    verdict: str


@attrs.frozen(kw_only=True)
class SearchFindings:
    """goal: for people. tokens: that were compared. rows: recipes with an exact cache, then whole choices."""

    goal: str
    tokens: int
    rows: tuple[SearchRow, ...]

    @classmethod
    def of(cls, found: RecipeSearch) -> SearchFindings:
        exact = [
            SearchRow(
                pairs=recipe.pairs,
                latent=recipe.latent,
                policy="fp16",
                bytes_per_token=None,
                predicted=None,
                measured=measured,
                verdict="",
            )
            for recipe, measured in found.recipes
        ]
        whole = [_search_row(each, found.result.chosen) for each in found.result.tried]
        return cls(goal=found.goal.text, tokens=found.tokens, rows=(*exact, *whole))


def _search_row(each: Tried[Choice], chosen: Tried[Choice] | None) -> SearchRow:
    choice = each.candidate.key
    return SearchRow(
        pairs=choice.recipe.pairs,
        latent=choice.recipe.latent,
        policy=choice.policy.short,
        bytes_per_token=each.candidate.bytes_per_token,
        predicted=each.candidate.predicted,
        measured=each.measured,
        verdict="chosen" if each is chosen else "kept" if each.good else "missed",
    )


@attrs.frozen(kw_only=True)
class ConversionFindings:
    """files: names of the source's files that were read. notes: what a user should know of that. context:
    tokens that were measured at once; target_context: that the budget was for. recipe: None where the model
    was kept as it is; calibration is then None too. search: where recipe and policy were searched for. pairs:
    the semantic channel pairs of each layer and KV head. seconds: by phase.
    """

    source: str
    family: str
    files: tuple[str, ...]
    notes: tuple[str, ...]
    parameters: int
    recipe: Recipe | None
    search: SearchFindings | None
    context: int
    target_context: int
    calibration: dict[str, Any] | None
    calibration_tokens: int
    pairs: tuple[tuple[tuple[int, ...], ...], ...]
    n_pairs: int
    variants: tuple[VariantFindings, ...]
    healed_steps: int
    seconds: dict[str, float]
    peak_memory_bytes: int
    warnings: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self.variants[0].losses)


def header(found: ConversionFindings) -> tuple[str, ...]:
    """The columns of the table of variants."""
    bytes_at = [f"bytes per token at {context:,}" for context in _contexts(found)]
    return ("cache", *bytes_at, "smaller", *(f"NLL {name}" for name in found.texts), "perplexity")


def rows(found: ConversionFindings) -> Iterable[tuple[str, ...]]:
    """One row per variant: the reference's losses, then differences with their standard errors."""
    for number, variant in enumerate(found.variants):
        if number == 0:
            cells = [_loss(variant.losses[text]) for text in found.texts]
            mean = "reference"
        else:
            cells = [
                f"{variant.delta_nll[text]:+.4f} ± {_error(variant.delta_std_error[text])}"
                for text in found.texts
            ]
            mean = f"{variant.mean_perplexity_increase:+.2%}"
        sizes = (variant.bytes_per_token, variant.bytes_per_token_target)[: len(_contexts(found))]
        yield (variant.name, *map(bytes_text, sizes), f"{variant.ratio:.2f}x", *cells, mean)


def _contexts(found: ConversionFindings) -> tuple[int, ...]:
    """The context that was measured, and the one of the budget where that is another."""
    return tuple(dict.fromkeys((found.context, found.target_context)))


def report_of(found: ConversionFindings, *, command: str, out: Path) -> Report:
    """command: that found it. out: the folder that holds it."""
    title = f"{found.source}{'' if found.recipe is None else ', decoupled'}"
    variants = Table.of_texts(header(found), list(rows(found)), title=title)
    search = found.search
    tables: tuple[Table, ...] = (variants,)
    if search is not None:
        about = f"Search: {search.goal}, at {found.target_context:,} tokens"
        tables = (Table.of_texts(SEARCH_HEADER, list(search_rows(search)), title=about), variants)
    return Report(
        name="conversion",
        title=title,
        command=command,
        tables=tables,
        figures=as_plain(found),
        notes=tuple(_notes(found)),
        pictures=tuple(_pictures(found)),
        next=(f'dba sample {out} --prompt "The capital of France is"', f"dba eval {out}"),
        folder=out,
        schema=SCHEMA,
    )


def _notes(found: ConversionFindings) -> Iterator[str]:
    yield _what_was_done(found)
    yield f"Read: {', '.join(found.files)}."
    yield from found.notes
    yield (
        "NLL in nats per token. The first row is the reference, the others are differences to it, with the "
        "standard error of the difference over windows. `perplexity` is the mean over the texts. Bytes are "
        "those of one sequence's cache of so many tokens, all layers, residual window included."
    )
    if found.search is not None:
        yield (
            f"The search compared with the source over {found.search.tokens:,} tokens, in nats per token. "
            f"Bytes per token of a cache of {found.target_context:,} tokens, residual window included."
        )
    yield from (f"Warning: {warning}" for warning in found.warnings)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found.seconds.items())
    yield f"Time: {seconds}. Peak memory {found.peak_memory_bytes / 2**20:,.0f} MiB."


def _pictures(found: ConversionFindings) -> Iterator[Picture]:
    def draw_pareto(path: Path) -> None:
        from dba_plugins.convert.plot import Point, pareto

        points = [
            Point(
                name=variant.name,
                bytes_per_token=variant.bytes_per_token,
                increase=variant.mean_perplexity_increase,
                own=variant.key.startswith("converted"),
            )
            for variant in found.variants
        ]
        pareto(path, points, title=f"{found.source}: perplexity against cache size")

    yield Picture(name="pareto", draw=draw_pareto)
    recipe = found.recipe
    if recipe is None:
        return

    def draw_pairs(path: Path) -> None:
        from dba_plugins.convert.plot import pair_map

        title = f"{found.source}: pairs that became semantic ({recipe.rule})"
        pair_map(path, found.pairs, n_pairs=found.n_pairs, title=title)

    yield Picture(name="pairs", draw=draw_pairs)


def _what_was_done(found: ConversionFindings) -> str:
    recipe = found.recipe
    if recipe is None or found.calibration is None:
        return f"As it is, {found.parameters:,} parameters; measured with a context of {found.context}."
    latent = (
        "one semantic key per KV head" if recipe.latent is None else f"a shared latent of {recipe.latent}"
    )
    rule, text = recipe.rule, found.calibration["name"]
    return (
        f"{recipe.pairs} channel pairs of every KV head became semantic (rule {rule}), {latent}; "
        f"calibrated on {found.calibration_tokens:,} tokens of {text}, context {found.context}."
    )


SEARCH_HEADER = ("pairs", "latent", "policy", "bytes per token", "predicted", "KL", "nats lost", "goal")


def search_rows(search: SearchFindings) -> Iterable[tuple[str, ...]]:
    """One row per measurement, in their order."""
    for row in search.rows:
        yield (
            str(row.pairs),
            "none" if row.latent is None else str(row.latent),
            row.policy,
            "" if row.bytes_per_token is None else bytes_text(row.bytes_per_token),
            "" if row.predicted is None else f"{row.predicted:.4f}",
            f"{row.measured.kl:.4f}",
            f"{row.measured.delta_nll:+.4f}",
            row.verdict,
        )


def variant_findings(
    rows: Sequence[tuple[Variant, dict[str, TextLoss]]], *, context: int, target_context: int
) -> tuple[VariantFindings, ...]:
    """rows: variants and their losses by text, the reference first. Contexts in tokens."""
    first, reference = rows[0]
    return tuple(
        VariantFindings(
            key=variant.key,
            name=variant.name,
            policy=variant.policy.short,
            bytes_per_token=_per_token(variant, context),
            bytes_per_token_target=_per_token(variant, target_context),
            ratio=_per_token(first, context) / _per_token(variant, context),
            losses=losses,
            delta_nll={text: loss.nll - reference[text].nll for text, loss in losses.items()},
            delta_std_error={text: _paired_error(loss, reference[text]) for text, loss in losses.items()},
        )
        for variant, losses in rows
    )


def _per_token(variant: Variant, context: int) -> float:
    """Bytes of a cache of `context` tokens, shared out over them."""
    attentions = variant.model.attentions
    return cache_bytes(attentions[0].shape, len(attentions), variant.policy, context) / context


def _paired_error(loss: TextLoss, reference: TextLoss) -> float:
    """Standard error of the mean difference over the same windows."""
    pairs = zip(loss.window_nll, reference.window_nll, strict=True)
    differences = torch.tensor([a - b for a, b in pairs], dtype=torch.float64)
    return float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan


def _loss(loss: TextLoss) -> str:
    return f"{loss.nll:.4f} ± {_error(loss.std_error)}"


def _error(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.4f}"
