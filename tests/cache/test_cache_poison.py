"""What lies past a row's length, or was left in memory, never shows."""

from __future__ import annotations

import pytest
import torch

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.registry import Registry

pytestmark = pytest.mark.torch


POLICIES = ["ksem=q4_0,kgeo=q8_0,v=nf4,resid=3", "ksem=fp32,kgeo=fp16,v=bf16", "ksem=nf4,kgeo=fp16,v=q8_0"]
WIDTHS = (5, 8, 6)


def make(policy: str) -> LayerCache:
    sizes = dict(zip(("k_sem", "k_geo", "v"), ((2, width) for width in WIDTHS), strict=True))
    return LayerCache(
        registry=Registry.default(),
        batch=2,
        capacity=16,
        rollback=4,
        policy=KVCachePolicy.parse(policy),
        **sizes,
    )


def tokens(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, count, width, generator=generator) for width in WIDTHS]


def poison(plane) -> None:
    plane.fill_(float("nan") if plane.is_floating_point() else -1 if plane.dtype == torch.int8 else 255)


def poison_past_the_lengths(cache: LayerCache) -> None:
    for store in (cache.k_sem, cache.k_geo, cache.v):
        for row, length in enumerate(cache.lengths):
            poison(store.codes[row, :, length:])
            if store.scales is not None:
                poison(store.scales[row, :, length:])
            if store.recent_ring is not None:
                size = store.recent_ring.shape[2]
                held = {p % size for p in range(max(0, length - size), length)}
                for slot in set(range(size)) - held:
                    poison(store.recent_ring[row, :, slot])


def steps(cache: LayerCache, *, poisoned: bool):
    """Append, truncate and append again; everything read on the way."""
    seen = []
    actions = (
        lambda: cache.append(*tokens(5, 0)),
        lambda: cache.append(*tokens(4, 1), counts=[4, 1]),
        lambda: cache.truncate([7, 6]),
        lambda: cache.append(*tokens(3, 2), counts=[2, 3]),
        lambda: cache.append(*tokens(1, 3)),
    )
    for act in actions:
        if poisoned:
            poison_past_the_lengths(cache)
        act()
        if poisoned:
            poison_past_the_lengths(cache)
        for store in (cache.k_sem, cache.k_geo, cache.v):
            seen.append(store.stored(0, cache.length).clone())
            if min(cache.lengths) == max(cache.lengths):
                seen.append(store.recent(cache.length - 3, cache.length).clone())
    return seen


@pytest.mark.parametrize("policy", POLICIES)
def test_poisoned_memory_changes_no_bit_of_what_is_read(policy):
    clean, dirty = steps(make(policy), poisoned=False), steps(make(policy), poisoned=True)
    assert len(clean) == len(dirty) > 15
    for one, two in zip(clean, dirty, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two)
