"""A LayerCache against a list that never quantizes, under any order of appends, truncations and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cache_oracle import block_bound
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import CacheError
from dba_core.registry import Registry

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("hypothesis"),
]


BATCH, HEADS, CAPACITY, ROLLBACK = 2, 2, 24, 3
NAMES = ("k_sem", "k_geo", "v")
WIDTHS = (3, 6, 8)
FLOATS = {"fp32": np.float32, "fp16": np.float16}


class CacheMachine(RuleBasedStateMachine):
    """rows[b]: the tokens of row b, each three arrays [G,D]; ring[b]: the position that each slot holds."""

    policy = KVCachePolicy.parse("ksem=q4_0@8,kgeo=q8_0@8,v=nf4@16,resid=5")

    def __init__(self) -> None:
        super().__init__()
        sizes = {name: (HEADS, width) for name, width in zip(NAMES, WIDTHS, strict=True)}
        self.cache = LayerCache(
            registry=Registry.default(),
            batch=BATCH,
            capacity=CAPACITY,
            policy=self.policy,
            rollback=ROLLBACK,
            **sizes,
        )
        self.rows: list[list[list[np.ndarray]]] = [[] for _ in range(BATCH)]
        self.ring_size = self.policy.residual + ROLLBACK
        self.ring: list[dict[int, int]] = [{} for _ in range(BATCH)]
        self.numbers = np.random.default_rng(0)

    def draw(self, count: int) -> list[np.ndarray]:
        size = 10.0 ** self.numbers.integers(-2, 3)
        return [
            (self.numbers.standard_normal((BATCH, HEADS, count, width)) * size).astype(np.float32)
            for width in WIDTHS
        ]

    @rule(counts=st.tuples(*[st.integers(0, 9)] * BATCH), equal=st.booleans(), padding=st.integers(0, 2))
    def append(self, counts: tuple[int, ...], equal: bool, padding: int) -> None:
        """Fits, or overflows and changes nothing."""
        if equal:
            counts = (counts[0],) * BATCH
        x = self.draw(max(counts) + padding)
        tensors = [torch.from_numpy(each) for each in x]
        if any(len(row) + count > CAPACITY for row, count in zip(self.rows, counts, strict=True)):
            with pytest.raises(CacheError, match="exceeds the capacity of 24"):
                self.cache.append(*tensors, counts=counts)
            return
        self.cache.append(*tensors, counts=None if equal and not padding else counts)
        for b, count in enumerate(counts):
            for t in range(count):
                position = len(self.rows[b])
                self.ring[b][position % self.ring_size] = position
                self.rows[b].append([each[b, :, t] for each in x])

    @rule(which=st.integers(0, 2), value=st.sampled_from([np.nan, np.inf, -np.inf]))
    def append_a_bad_value(self, which: int, value: float) -> None:
        x = self.draw(1)
        x[which][1, 0, 0, 1] = value
        with pytest.raises(CacheError):
            self.cache.append(*map(torch.from_numpy, x))

    @rule(back=st.tuples(*[st.integers(0, 12)] * BATCH), equal=st.booleans())
    def truncate(self, back: tuple[int, ...], equal: bool) -> None:
        """Exact where the ring still holds the window before the cut, refused where it does not."""
        keep = [max(0, len(row) - step) for row, step in zip(self.rows, back, strict=True)]
        if equal:
            keep = [min(keep)] * BATCH
        if all(self.window_is_held(b, n) for b, n in enumerate(keep)):
            self.cache.truncate(keep[0] if equal else keep)
            for b, n in enumerate(keep):
                del self.rows[b][n:]
                self.ring[b] = {slot: position for slot, position in self.ring[b].items() if position < n}
        else:
            with pytest.raises(CacheError, match="rollback="):
                self.cache.truncate(keep)

    def window_is_held(self, b: int, length: int) -> bool:
        if not self.policy.residual:
            return True
        window = range(max(0, length - self.policy.residual), length)
        return all(self.ring[b].get(position % self.ring_size) == position for position in window)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.rows = [[] for _ in range(BATCH)]
        self.ring = [{} for _ in range(BATCH)]

    @rule(data=st.data())
    def read_a_range(self, data: st.DataObject) -> None:
        stop = data.draw(st.integers(0, self.cache.length))
        start = data.draw(st.integers(0, stop))
        for name in NAMES:
            store = {"k_sem": self.cache.k_sem, "k_geo": self.cache.k_geo, "v": self.cache.v}[name]
            whole = store.stored(0, self.cache.length)
            assert torch.equal(store.stored(start, stop), whole[:, :, start:stop])

    @invariant()
    def lengths_agree(self) -> None:
        expected = tuple(map(len, self.rows))
        assert self.cache.lengths == expected
        assert self.cache.lengths_device.tolist() == list(expected)
        assert self.cache.length == max(expected)

    @invariant()
    def stored_is_within_the_formats_bound(self) -> None:
        for index, store in enumerate((self.cache.k_sem, self.cache.k_geo, self.cache.v)):
            stored = store.stored(0, self.cache.length).numpy()
            for b, row in enumerate(self.rows):
                assert (stored[b, :, len(row) :] == 0).all()
                for t, token in enumerate(row):
                    if store.qblock:
                        error = np.abs(stored[b, :, t].astype(np.float64) - token[index])
                        assert (error <= block_bound(token[index], store.format, store.qblock)).all()
                    else:
                        assert (stored[b, :, t] == token[index].astype(FLOATS[store.format])).all()

    @invariant()
    def the_window_is_the_fp16_rounding(self) -> None:
        shortest = min(map(len, self.rows))
        for index, store in enumerate((self.cache.k_sem, self.cache.k_geo, self.cache.v)):
            if store.recent_ring is None:
                continue
            for b, row in enumerate(self.rows):
                for position in range(max(0, len(row) - self.policy.residual), len(row)):
                    held = store.recent_ring[b, :, position % self.ring_size].numpy()
                    assert (held == row[position][index].astype(np.float16)).all()
            if shortest == self.cache.length:
                start = max(0, shortest - self.policy.residual)
                recent = store.recent(start, shortest).numpy()
                for offset, position in enumerate(range(start, shortest)):
                    for b, row in enumerate(self.rows):
                        assert (recent[b, :, offset] == row[position][index].astype(np.float16)).all()


class NoWindowMachine(CacheMachine):
    policy = KVCachePolicy.parse("ksem=nf4@8,kgeo=q4_0@32,v=q8_0@8")


class MixedFloatMachine(CacheMachine):
    policy = KVCachePolicy.parse("ksem=fp16,kgeo=q8_0@16,v=fp32,resid=1")


QUICK = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None)

TestQuantizedWithWindow = CacheMachine.TestCase
TestQuantizedWithoutWindow = NoWindowMachine.TestCase
TestMixedWithFloats = MixedFloatMachine.TestCase
TestQuantizedWithWindow.settings = QUICK
TestQuantizedWithoutWindow.settings = QUICK
TestMixedWithFloats.settings = QUICK
