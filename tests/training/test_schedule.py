"""The learning rate: warmup, peak, cosine, floor; against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from dba_core.config.run import TrainingConfig
from dba_core.training.step import learning_rate

pytestmark = pytest.mark.torch


def rates(**fields: float) -> list[float]:
    config = TrainingConfig(**{"lr": 1.0, "min_lr_ratio": 0.1, **fields})
    return [learning_rate(step, config) for step in range(config.steps)]


def test_warmup_is_linear_up_to_the_peak() -> None:
    assert rates(steps=10, warmup_steps=4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_passes_the_middle_and_ends_at_the_floor() -> None:
    after = rates(steps=10, warmup_steps=2)[2:]
    assert after[3] == pytest.approx(0.55)
    assert after[1] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert after[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(after))


def test_no_warmup_starts_just_under_the_peak() -> None:
    every = rates(steps=1000, warmup_steps=0)
    assert 0.999 < every[0] < 1.0
    assert every[-1] == pytest.approx(0.1)


def test_a_floor_of_one_is_a_constant_rate() -> None:
    assert rates(steps=20, warmup_steps=3, min_lr_ratio=1.0)[2:] == [1.0] * 18


@pytest.mark.parametrize("steps", [1, 5])
def test_a_warmup_longer_than_the_run_only_warms_up(steps: int) -> None:
    assert rates(steps=steps, warmup_steps=10) == [(step + 1) / 10 for step in range(steps)]


def test_warmup_of_the_whole_run_and_of_no_steps() -> None:
    assert rates(steps=4, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]
    assert rates(steps=0) == []
