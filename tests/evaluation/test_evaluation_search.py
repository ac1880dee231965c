"""The search measures little, and what it chooses was measured and keeps the goal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sharp_model import TOKENS, sharp_model

from dba_core.cache.bytes import bytes_per_token
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import DataError, UsageError
from dba_core.evaluation.metrics import fidelity_metrics
from dba_core.model.language_model import LanguageModel
from dba_plugins.tune.distance import Divergence, Reference
from dba_plugins.tune.policy_search import (
    Sizes,
    combinations,
    measure_singles,
    search_policy,
)
from dba_plugins.tune.search import MOST_TRIES, Candidate, Goal, SearchError, bytes_text, frontier, search

pytestmark = pytest.mark.torch


FP32 = KVCachePolicy.parse("ksem=fp32,kgeo=fp32,v=fp32")


def costing(kl: float, delta: float | None = None) -> Divergence:
    delta = kl if delta is None else delta
    return Divergence(kl=kl, kl_std_error=0.0, delta_nll=delta, delta_std_error=0.0, tokens=1)


def candidates(*pairs: tuple[int, float]) -> list[Candidate[int]]:
    return [Candidate(key=size, bytes_per_token=size, predicted=predicted) for size, predicted in pairs]


LINE = candidates((10, 0.8), (20, 0.4), (30, 0.2), (40, 0.1), (50, 0.05), (60, 0.02))


def sizes(found) -> list[int]:
    return [each.candidate.key for each in found.tried]


def test_the_frontier_is_what_nothing_beats() -> None:
    every = candidates((30, 0.2), (10, 0.8), (30, 0.5), (20, 0.9), (25, 0.2), (40, 0.1), (50, 0.1))
    assert [(each.key, each.predicted) for each in frontier(every)] == [(10, 0.8), (25, 0.2), (40, 0.1)]


def test_a_budget_takes_the_best_measured_of_the_few_predicted_best() -> None:
    real = {20: 0.3, 30: 0.1, 40: 0.2, 50: 0.15}
    found = search(LINE, Goal(budget_bytes=50), lambda each: costing(real[each.key]))
    assert sizes(found) == [20, 30, 40, 50]
    assert found.chosen is not None
    assert found.chosen.candidate.key == 30, "by what was measured, not by what was predicted"
    nothing = search(LINE, Goal(budget_bytes=9), lambda each: costing(0.0))
    assert (nothing.tried, nothing.chosen, nothing.smallest) == ((), None, 10)


@pytest.mark.parametrize(
    ("factor", "tried", "chosen"),
    [
        (1.0, [30, 20], 30),  # as predicted: the next smaller one fails
        (0.3, [30, 20, 10], 20),  # better than predicted: goes on to smaller ones
        (3.0, [30, 40, 50], 50),  # worse: goes on to larger ones
        (100.0, [30, 40, 50, 60], None),
    ],
)
def test_a_gate_walks_along_the_frontier(factor: float, tried: list[int], chosen: int | None) -> None:
    found = search(LINE, Goal(max_delta_nll=0.2), lambda each: costing(factor * each.predicted))
    assert sizes(found) == tried
    assert (None if found.chosen is None else found.chosen.candidate.key) == chosen


def test_a_gate_looks_at_the_larger_of_both_costs_and_keeps_the_budget() -> None:
    lucky = search(LINE, Goal(max_delta_nll=0.2), lambda each: costing(each.predicted * 1.2, -1.0))
    assert lucky.chosen is not None
    assert lucky.chosen.candidate.key == 40
    both = Goal(max_delta_nll=0.01, budget_bytes=45)
    assert sizes(search(LINE, both, lambda each: costing(each.predicted))) == [40]


def test_a_long_walk_ends() -> None:
    line = candidates(*((size, 1.0 / size) for size in range(1, 40)))
    found = search(line, Goal(max_delta_nll=0.5), lambda each: costing(9.0))
    assert len(found.tried) == MOST_TRIES


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "give --budget-bytes, --max-delta-nll or both"),
        ({"budget_bytes": 0}, "give at least 1"),
        ({"max_delta_nll": 0.0}, "above 0"),
        ({"max_delta_nll": math.nan}, "above 0"),
    ],
)
def test_goals_that_are_none(goal: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Goal(**goal)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return sharp_model()


def test_the_divergence_is_that_of_the_logits(model: LanguageModel) -> None:
    policy = KVCachePolicy.parse("ksem=q4_0@8,kgeo=q4_0@8,v=q4_0@8")
    found = Reference(model, TOKENS, context=16, limit_tokens=40).compare(model, policy)
    windows = []
    with torch.no_grad():
        for start, length in ((0, 16), (16, 16), (32, 8)):
            window = torch.from_numpy(TOKENS[start : start + length + 1].astype(np.int64))[None]
            x, y = window[:, :-1], window[:, 1:]
            cache = model.new_cache(batch=1, capacity=length, policy=policy)
            windows.append(fidelity_metrics(model(x), model(x, cache=cache), y))
    weights = [16 / 40, 16 / 40, 8 / 40]
    kl = sum(w * each.kl for w, each in zip(weights, windows, strict=True))
    delta = sum(w * each.delta_nll for w, each in zip(weights, windows, strict=True))
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.delta_nll == pytest.approx(delta, rel=1e-3, abs=1e-6)
    assert found.kl > 1e-3
    spread = np.std([each.kl for each in windows], ddof=1) / math.sqrt(3)
    assert found.kl_std_error == pytest.approx(spread, rel=1e-4)
    assert found.tokens == 40


def test_an_exact_cache_costs_nothing_and_one_window_has_no_error(model: LanguageModel) -> None:
    seen: list[None] = []
    reference = Reference(model, TOKENS, context=16, limit_tokens=16, on_window=lambda: seen.append(None))
    found = reference.compare(model, FP32, on_window=lambda: seen.append(None))
    assert abs(found.kl) < 1e-9
    assert abs(found.delta_nll) < 1e-5
    assert math.isnan(found.kl_std_error)
    assert len(seen) == 2 == 2 * reference.windows
    with pytest.raises(DataError):
        Reference(model, TOKENS[:1], context=16, limit_tokens=16)


def test_costs_of_tensors_add_and_bytes_are_the_caches(model: LanguageModel) -> None:
    reference = Reference(model, TOKENS, context=16, limit_tokens=48)
    shape = model.attentions[0].shape
    singles = measure_singles(shape, 2, lambda policy: reference.compare(model, policy), windows=(0, 3))
    assert {(single.tensor, single.residual) for single in singles} == {
        (tensor, window) for tensor in ("k_sem", "k_geo", "v") for window in (0, 3)
    }
    found = list(combinations(singles, Sizes(shape=shape, n_layers=2, context=500)))
    every = {candidate.key.short: candidate for candidate in found}
    assert len(every) == len(found), "fp16 is there once, not once with each window"
    assert {candidate.key.residual for candidate in found} == {0, 3}
    for candidate in found[::37]:
        made = model.new_cache(batch=1, capacity=500, policy=candidate.key)
        assert candidate.bytes_per_token == made.nbytes / 500
    whole = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32")
    measured = reference.compare(model, whole).kl
    assert 0.5 * measured < every[whole.short].predicted < 2 * measured


def test_a_search_ends_with_a_policy_that_keeps_the_goal(model: LanguageModel) -> None:
    reference = Reference(model, TOKENS, context=16, limit_tokens=48)
    shape = model.attentions[0].shape
    all_q4 = 2 * bytes_per_token(shape, KVCachePolicy.parse("ksem=q4_0@256,kgeo=q4_0@256,v=q4_0@256"))
    asked: list[str] = []

    def measure(policy: KVCachePolicy) -> Divergence:
        asked.append(policy.short)
        return reference.compare(model, policy)

    sizes = Sizes(shape=shape, n_layers=2, context=64)
    gate = search_policy(sizes, Goal(max_delta_nll=0.05), measure)
    assert gate.chosen is not None
    assert reference.compare(model, gate.chosen).cost <= 0.05
    assert len(set(asked)) == len(asked), "nothing is measured twice"
    tight = search_policy(sizes, Goal(budget_bytes=all_q4), measure)
    assert tight.chosen is not None
    assert 2 * bytes_per_token(shape, tight.chosen) <= all_q4
    assert search_policy(sizes, Goal(budget_bytes=all_q4 - 1), measure).chosen is None


FOUR_BITS = {"q4_0", "nf4"}


def by_format(policy: KVCachePolicy) -> Divergence:
    """4 bits cost 0.1 a tensor and others 0.01, a window makes that a fifth."""
    formats = (policy.k_sem.format, policy.k_geo.format, policy.v.format)
    cost = sum({"fp16": 0.0, "q4_0": 0.1, "nf4": 0.1}.get(each, 0.01) for each in formats)
    return costing(cost / (5 if policy.residual else 1))


def test_a_window_is_chosen_where_the_context_is_long_enough_to_carry_it() -> None:
    shape = AttentionConfig(d_model=32, n_heads=4, sem_head_dim=4, geo_head_dim=8, v_head_dim=8).shape
    goal = Goal(max_delta_nll=0.061)
    long = search_policy(Sizes(shape=shape, n_layers=2, context=100_000), goal, by_format, windows=(0, 32))
    assert long.chosen is not None
    assert long.chosen.residual == 32
    assert {long.chosen.k_sem.format, long.chosen.k_geo.format, long.chosen.v.format} <= FOUR_BITS
    short = search_policy(Sizes(shape=shape, n_layers=2, context=96), goal, by_format, windows=(0, 32))
    assert short.windows == (0,), "96 slots in fp16 for 96 tokens take as much as fp16"
    assert short.chosen is not None
    assert short.chosen.residual == 0
    assert not {short.chosen.k_sem.format, short.chosen.k_geo.format, short.chosen.v.format} <= FOUR_BITS


def test_a_budget_counts_the_window_at_its_context() -> None:
    shape = AttentionConfig(d_model=32, n_heads=4, sem_head_dim=4, geo_head_dim=8, v_head_dim=8).shape
    fp16, context = 2 * 2 * 4 * (4 + 8 + 8), 4000
    windowed = KVCachePolicy.parse("ksem=q4_0@256,kgeo=q4_0@256,v=q4_0@256,resid=32")
    least = 2 * bytes_per_token(shape, windowed) + fp16 * (32 + 64) / context  # the ring, shared out
    for budget, expected in ((math.ceil(least), 32), (math.floor(least), 0)):
        found = search_policy(
            Sizes(shape=shape, n_layers=2, context=context),
            Goal(budget_bytes=budget),
            by_format,
            windows=(0, 32),
        )
        assert found.chosen is not None
        assert found.chosen.residual == expected
        assert found.sizes.per_token(found.chosen) <= budget


def test_what_was_measured_before_is_not_lost_and_not_measured_again() -> None:
    before = Candidate(key=25, bytes_per_token=25, predicted=math.nan)
    asked: list[int] = []

    def measure(each: Candidate[int]) -> Divergence:
        asked.append(each.key)
        return costing(each.predicted)

    found = search(LINE, Goal(max_delta_nll=0.2), measure, known=[(before, costing(0.15))])
    assert found.chosen is not None
    assert found.chosen.candidate.key == 25, "smaller than what the walk finds, and it keeps the goal"
    asked.clear()
    again = search(LINE, Goal(max_delta_nll=0.2), measure, known=[(LINE[2], costing(0.3))])
    assert 30 not in asked
    assert [each.candidate.key for each in again.tried].count(30) == 1
    assert again.chosen is not None
    assert again.chosen.candidate.key == 40, "30 was measured worse than predicted"
    best = search(LINE, Goal(budget_bytes=50), measure, known=[(before, costing(0.001))])
    assert best.chosen is not None
    assert best.chosen.candidate.key == 25
    large = search(LINE, Goal(budget_bytes=20), measure, known=[(before, costing(0.001))])
    assert large.chosen is not None
    assert large.chosen.candidate.key == 20
    assert not next(each for each in large.tried if each.candidate.key == 25).good, "over the budget"
    nothing = search(LINE, Goal(budget_bytes=9), measure, known=[(before, costing(0.001))])
    with pytest.raises(SearchError, match="the smallest that can be made takes 10 bytes"):
        nothing.require(Goal(budget_bytes=9), "policy")


@pytest.mark.parametrize(
    ("size", "text"), [(304.0, "304"), (1234.56, "1,234.6"), (7.01, "7.1"), (0.3, "0.3"), (2.0 / 3, "0.7")]
)
def test_bytes_are_rounded_up(size: float, text: str) -> None:
    assert bytes_text(size) == text


def test_a_layout_without_semantics_has_no_semantic_formats() -> None:
    shape = AttentionConfig(mode="standard", d_model=32, n_heads=2).shape
    singles = measure_singles(shape, 1, lambda policy: costing(0.1))
    assert {single.tensor for single in singles} == {"k_geo", "v"}
    sizes = Sizes(shape=shape, n_layers=1, context=64)
    assert all(c.bytes_per_token == bytes_per_token(shape, c.key) for c in combinations(singles, sizes))
