"""Sampling: values against numpy, ties, extremes, and the random streams."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dba_core.errors import DBAError
from dba_core.generation.sampling import RowStreams, keep_top_k, keep_top_p, sample

pytestmark = pytest.mark.torch


INF = math.inf
PROBABILITIES = [0.4, 0.1, 0.25, 0.05, 0.2]


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def choose(logits: torch.Tensor, u: float, **settings: float | None) -> int:
    return int(sample(logits, torch.tensor([u], dtype=torch.float64), **{"temperature": 1.0, **settings})[0])


def test_top_k_keeps_the_largest_and_their_values() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0], [0.0, -1.0, 7.0, 2.0]])
    assert keep_top_k(logits, 2).tolist() == [[-INF, 5, -INF, 4], [-INF, -INF, 7, 2]]
    assert keep_top_k(logits, 9).tolist() == logits.tolist()
    assert logits[0, 0] == 1.0  # the input is untouched


def test_top_k_keeps_the_lower_index_of_equal_ones() -> None:
    assert keep_top_k(torch.tensor([[2.0, 3.0, 2.0, 2.0]]), 2).tolist() == [[2, 3, -INF, -INF]]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.3, [0]),
        (0.41, [0, 2]),
        (0.64, [0, 2]),
        (0.66, [0, 2, 4]),
        (0.86, [0, 1, 2, 4]),
        (0.96, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, kept: list[int]) -> None:
    logits = logits_of(PROBABILITIES)
    expected = [value if i in kept else -INF for i, value in enumerate(logits[0].tolist())]
    assert keep_top_p(logits, p)[0].tolist() == expected


def test_top_p_always_keeps_the_likeliest() -> None:
    assert keep_top_p(torch.tensor([[0.0, 100.0, 0.0]]), 1e-6).tolist() == [[-INF, 100, -INF]]


def test_top_p_rows_are_apart() -> None:
    both = torch.cat([logits_of(PROBABILITIES), logits_of(PROBABILITIES[::-1])])
    kept = torch.isfinite(keep_top_p(both, 0.5))
    assert kept.tolist() == [[True, False, True, False, False], [False, False, True, False, True]]


@pytest.mark.parametrize("logits", [[1.0, 3.0, 3.0, 2.0], [1.0, 3.0, -INF, 3.0]])
def test_temperature_zero_is_the_first_largest(logits: list[float]) -> None:
    assert choose(torch.tensor([logits]), 0.99, temperature=0.0) == 1


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.81, 4)]
)
def test_the_uniform_number_picks_by_cumulative_probability(u: float, token: int) -> None:
    assert choose(logits_of(PROBABILITIES), u) == token


def test_the_largest_uniform_number_takes_no_token_of_probability_zero() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.3, -INF, -INF]])
    assert choose(logits, 1 - 2.0**-52) == 2
    assert choose(torch.tensor([[-INF, 0.0, 0.0]]), 0.0) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_probabilities(temperature: float) -> None:
    uniforms = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    logits = logits_of(PROBABILITIES).expand(10000, -1)
    tokens = sample(logits, uniforms, temperature=temperature, top_k=4, top_p=0.9).numpy()
    p = np.array(PROBABILITIES) ** (1 / temperature)
    p[3] = 0  # top-k 4
    p /= p.sum()
    order = np.argsort(-p)
    p[order[1:][np.cumsum(p[order])[:-1] >= 0.9]] = 0
    expected = p / p.sum()
    assert np.abs(np.bincount(tokens, minlength=5) / 10000 - expected).max() <= 2e-4


def test_extreme_temperatures_and_logits() -> None:
    logits = torch.tensor([[3e38, -3e38, 2.9e38]])
    assert choose(logits, 0.999, temperature=1e-300) == 0
    assert choose(logits, 0.999) == 0
    assert choose(torch.tensor([[1.0, 2.0, 3.0]]), 0.34, temperature=1e300) == 1  # all but uniform


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_logits_that_are_no_numbers_stop(bad: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(DBAError, match="NaN or infinite"):
            choose(torch.tensor([[0.0, bad, 1.0]]), 0.5, temperature=temperature)


def test_streams_depend_on_seed_and_prompt_and_not_on_the_batch() -> None:
    batch = RowStreams(5, [[1, 2], [3], [1, 2]])
    alone = [RowStreams(5, [prompt]) for prompt in ([1, 2], [3])]
    other_seed = RowStreams(6, [[1, 2]])
    for _ in range(4):
        numbers = batch.next()
        assert numbers.dtype == torch.float64
        assert numbers[:2].tolist() == [stream.next()[0].item() for stream in alone]
        assert len({*numbers.tolist(), other_seed.next()[0].item()}) == 4  # equal prompts draw apart


def test_stream_numbers_are_uniform() -> None:
    streams = RowStreams(0, [[i] for i in range(50)])
    numbers = torch.stack([streams.next() for _ in range(100)]).flatten().numpy()
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert counts.sum() == 5000
    assert np.abs(counts - 500).max() < 5 * math.sqrt(450)
