"""Which recipe and KV policy: the ones that keep a goal, with few measurements.

    predicted(recipe, policy) = kl(recipe, exact cache) + the sum over tensors of what its format adds

A tensor's format is measured on one recipe, alone, and taken in proportion to the pairs that the tensor holds
under another. What is chosen was measured as a whole. Everything is compared with the source on a stretch of
the calibration text that calibration did not read, so that the texts of the report stay unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.model.language_model import LanguageModel
from dba_plugins.convert.decouple import Recipe, decoupled_config
from dba_plugins.convert.request import DEFAULT_PAIRS, ConvertRequest
from dba_plugins.tune.distance import Divergence, Reference
from dba_plugins.tune.policy_search import WINDOW, Single, Sizes, combinations, measure_singles
from dba_plugins.tune.search import MOST_TRIES, Candidate, Goal, SearchResult, search

#: What a search measures for every tensor: short and long blocks, or 8 bits, whose blocks hardly matter.
FORMATS = ("q8_0@256", "q4_0@32", "q4_0@256")
#: Residual windows that are tried.
WINDOWS = (0, WINDOW)


@attrs.frozen(kw_only=True)
class Choice:
    """A recipe under a policy."""

    recipe: Recipe
    policy: KVCachePolicy


@attrs.frozen(kw_only=True)
class Scope:
    """What may vary; None is what the search finds. base: the rest of the recipe."""

    base: Recipe
    pairs: int | None = None
    latent: tuple[int | None] | None = None
    policy: KVCachePolicy | None = None


@attrs.frozen(kw_only=True)
class RecipeSearch:
    """recipes: each with an exact cache, and its KL. singles: of the recipe `measured_on`."""

    goal: Goal
    tokens: int
    recipes: tuple[tuple[Recipe, Divergence], ...]
    measured_on: Recipe
    singles: tuple[Single, ...]
    result: SearchResult[Choice]


def recipe_of(request: ConvertRequest) -> Recipe:
    """What was asked for, or what is done without it."""
    return Recipe(
        pairs=request.pairs or DEFAULT_PAIRS,
        latent=request.latent_width,
        rule=request.select or "kl",
        spread=request.spread is not False,
        fit=request.fit is not False,
    )


def goal_of(request: ConvertRequest) -> Goal | None:
    """None where nothing is searched for. Raises UsageError for one that cannot be."""
    if request.budget_bytes is None and request.max_delta_nll is None:
        return None
    return Goal(budget_bytes=request.budget_bytes, max_delta_nll=request.max_delta_nll)


def scope_of(request: ConvertRequest) -> Scope:
    """What a search may choose: what was given stays."""
    return Scope(
        base=recipe_of(request),
        pairs=request.pairs,
        latent=None if request.latent is None else (request.latent_width,),
        policy=None if request.kv_policy is None else request.policy,
    )


def recipes_of(source: AttentionConfig, scope: Scope) -> list[Recipe]:
    """A quarter to five eighths of the pairs, each with keys per head and with a shared latent of two thirds
    of their channels; what the scope fixes stays.
    """
    shape = source.resolved().shape
    n_pairs = shape.geo_head_dim // 2
    grid = [scope.pairs] if scope.pairs is not None else [n_pairs * eighths // 8 for eighths in (2, 3, 4, 5)]
    found = []
    for pairs in dict.fromkeys(max(1, pairs) for pairs in grid):
        whole = 2 * pairs * shape.n_kv_heads
        latents: Sequence[int | None] = (None, whole * 2 // 3 // 8 * 8) if shape.n_kv_heads > 1 else (None,)
        if scope.latent is not None:
            latents = scope.latent
        found += [attrs.evolve(scope.base, pairs=pairs, latent=latent) for latent in latents if latent != 0]
    for recipe in found:
        decoupled_config(source, recipe)  # says what does not fit
    return found


def search_recipe(
    source: LanguageModel,
    reference: Reference,
    goal: Goal,
    scope: Scope,
    *,
    context: int,
    convert: Callable[[Recipe], LanguageModel],
    on_window: Callable[[], None] = lambda: None,
) -> RecipeSearch:
    """Measure and choose. reference: the source's answers. context: tokens of the sequence that a budget is
    for. convert: makes the model of a recipe.
    """
    config, layers = source.config.attention, len(source.attentions)
    models = _Models(convert)

    def measure(recipe: Recipe, policy: KVCachePolicy) -> Divergence:
        return reference.compare(models.of(recipe), policy, on_window=on_window)

    recipes = recipes_of(config, scope)
    alone = tuple((recipe, measure(recipe, KVCachePolicy.uniform("fp16"))) for recipe in recipes)
    middle = min(recipes, key=lambda r: (r.latent is not None, abs(4 * r.pairs - config.shape.geo_head_dim)))
    base = dict(alone)[middle].kl
    singles: tuple[Single, ...] = ()
    if scope.policy is None:
        shape = decoupled_config(config, middle).resolved().shape
        raw = measure_singles(
            shape,
            layers,
            lambda policy: measure(middle, policy),
            windows=Sizes(shape=shape, n_layers=layers, context=context).windows(WINDOWS, goal),
            formats=[TensorFormat.parse(text) for text in FORMATS],
        )
        singles = tuple(attrs.evolve(single, kl=max(single.kl - base, 0.0)) for single in raw)
    result = search(
        _candidates(config, alone, middle, singles, scope, n_layers=layers, context=context),
        goal,
        lambda candidate: measure(candidate.key.recipe, candidate.key.policy),
    )
    return RecipeSearch(
        goal=goal,
        tokens=alone[0][1].tokens,
        recipes=alone,
        measured_on=middle,
        singles=singles,
        result=result,
    )


def most_comparisons(source: AttentionConfig, scope: Scope) -> int:
    """An upper bound of the comparisons that `search_recipe` makes, for a progress bar."""
    singles = 3 * len(FORMATS) * len(WINDOWS) if scope.policy is None else 0
    return len(recipes_of(source, scope)) + singles + MOST_TRIES


def _candidates(
    config: AttentionConfig,
    alone: Iterable[tuple[Recipe, Divergence]],
    middle: Recipe,
    singles: Iterable[Single],
    scope: Scope,
    *,
    n_layers: int,
    context: int,
) -> Iterator[Candidate[Choice]]:
    n_pairs = config.shape.geo_head_dim // 2
    for recipe, exact in alone:
        shape = decoupled_config(config, recipe).resolved().shape
        share = {
            "k_sem": recipe.pairs / middle.pairs,
            "k_geo": (n_pairs - recipe.pairs) / (n_pairs - middle.pairs),
            "v": 1.0,
        }
        sizes = Sizes(shape=shape, n_layers=n_layers, context=context)
        if scope.policy is not None:
            added = [
                Candidate(key=scope.policy, bytes_per_token=sizes.per_token(scope.policy), predicted=0.0)
            ]
        else:
            scaled = [attrs.evolve(single, kl=single.kl * share[single.tensor]) for single in singles]
            added = list(combinations(scaled, sizes))
        for each in added:
            yield Candidate(
                key=Choice(recipe=recipe, policy=each.key),
                bytes_per_token=each.bytes_per_token,
                predicted=exact.kl + each.predicted,
            )


class _Models:
    """The converted model of the last recipe, so that one after the other is in memory."""

    def __init__(self, convert: Callable[[Recipe], LanguageModel]) -> None:
        self._convert = convert
        self._last: tuple[Recipe, LanguageModel] | None = None

    def of(self, recipe: Recipe) -> LanguageModel:
        if self._last is None or self._last[0] != recipe:
            self._last = None
            self._last = recipe, self._convert(recipe)
        return self._last[1]
