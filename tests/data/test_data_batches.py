"""Training batches: one stream for any number of processes, exact continuation; windows over every target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dba_core.data.batches import BatchSampler, held_out_windows
from dba_core.errors import DataError

pytestmark = pytest.mark.torch


TOKENS = np.arange(100, dtype=np.uint16)


def sampler(**changes: int) -> BatchSampler:
    return BatchSampler(TOKENS, **{"batch_size": 12, "context": 8, "seed": 3, **changes})


def test_targets_are_the_inputs_one_later() -> None:
    x, y = sampler().next()
    assert x.shape == y.shape == (12, 8)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    starts = x[:, :1]
    assert torch.equal(x, starts + torch.arange(8))  # TOKENS counts up, so a token is its position
    assert torch.equal(y, x + 1)


def test_offsets_are_uniform_over_every_place() -> None:
    batches = BatchSampler(TOKENS, batch_size=20000, context=90, seed=0)
    counts = np.bincount(batches.next()[0][:, 0].numpy(), minlength=10)
    assert len(counts) == 10  # 100 tokens hold 10 windows of 91
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))


def test_the_only_place_is_taken() -> None:
    x, y = BatchSampler(TOKENS, batch_size=2, context=99, seed=0).next()
    assert x.tolist() == [list(range(99))] * 2
    assert y.tolist() == [list(range(1, 100))] * 2


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    alone = sampler()
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(3):
        x, y = alone.next()
        parts = [rank.next() for rank in ranks]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
    assert all(rank.state_dict() == alone.state_dict() for rank in ranks)


def test_seeds_differ() -> None:
    assert not torch.equal(sampler(seed=3).next()[0], sampler(seed=4).next()[0])


def test_state_goes_through_json_and_torch_and_continues_exactly(tmp_path: Path) -> None:
    first = sampler()
    for _ in range(5):
        first.next()
    state = json.loads(json.dumps(first.state_dict()))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again, third = sampler(seed=99), sampler(seed=98, rank=1, world_size=2)
    again.load_state_dict(state)
    third.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.drawn == 5
    for _ in range(4):
        x = first.next()[0]
        assert torch.equal(again.next()[0], x)
        assert torch.equal(third.next()[0], x[6:])


def test_state_is_a_copy() -> None:
    batches = sampler()
    state = batches.state_dict()
    x = batches.next()[0]
    batches.load_state_dict(state)
    assert torch.equal(batches.next()[0], x)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 6), ("context", 9)])
def test_state_of_other_batches_is_refused(key: str, value: int) -> None:
    with pytest.raises(DataError, match=rf"is for {key}=\d+, this run has {value}"):
        sampler(**{key: value}).load_state_dict(sampler().state_dict())


def test_state_of_other_data_is_refused() -> None:
    other = BatchSampler(TOKENS[:50], batch_size=12, context=8, seed=3)
    with pytest.raises(DataError, match="is for tokens=100, this run has 50"):
        other.load_state_dict(sampler().state_dict())


def test_too_few_tokens() -> None:
    with pytest.raises(DataError, match="100 tokens are too few for a context of 100; give at least 101"):
        sampler(context=100)


@pytest.mark.parametrize("n", [2, 3, 9, 10, 17, 33, 100])
@pytest.mark.parametrize("context", [1, 8, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_cover_every_target_once(n: int, context: int, batch_size: int) -> None:
    inputs, targets = [], []
    shapes = []
    for x, y in held_out_windows(TOKENS[:n], context, batch_size=batch_size):
        assert x.dtype == y.dtype == torch.int64
        inputs += x.flatten().tolist()
        targets += y.flatten().tolist()
        shapes.append(tuple(x.shape))
    assert inputs == list(range(n - 1))
    assert targets == list(range(1, n))
    rest = (n - 1) % context
    assert all(shape[1] == context and shape[0] <= batch_size for shape in shapes[: -1 if rest else None])
    assert not rest or shapes[-1] == (1, rest)


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (8, 8), (11, 11), (99, 99), (1000, 99)])
def test_limit_counts_targets(limit: int, expected: int) -> None:
    targets = [
        t
        for _, y in held_out_windows(TOKENS, 8, limit_tokens=limit, batch_size=4)
        for t in y.flatten().tolist()
    ]
    assert targets == list(range(1, expected + 1))


def test_nothing_to_predict() -> None:
    with pytest.raises(DataError, match="leave nothing to predict"):
        next(held_out_windows(TOKENS[:1], 8))


def test_windows_leave_a_read_only_map_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TOKENS)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    x, _ = next(held_out_windows(mapped, 8))
    x += 1
    assert mapped.tolist() == TOKENS.tolist()
    assert BatchSampler(mapped, batch_size=2, context=8, seed=1).next()[0].shape == (2, 8)
