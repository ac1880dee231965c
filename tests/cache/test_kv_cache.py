"""KVCache: several layers that must hold the same tokens."""

from __future__ import annotations

import pytest
import torch

from dba_core.cache.kv_cache import KVCache
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import CacheError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch


POLICY = KVCachePolicy.parse("ksem=q4_0,kgeo=q8_0,v=q4_0,resid=3")


def layer(number: int, *, batch: int = 2, capacity: int = 20, rollback: int = 2) -> LayerCache:
    return LayerCache(
        registry=Registry.default(),
        k_sem=(2, 4),
        k_geo=(2, 6),
        v=(2, 4),
        batch=batch,
        capacity=capacity,
        policy=POLICY,
        layer=number,
        rollback=rollback,
    )


def fill(cache: LayerCache, count: int, *, counts=None) -> None:
    cache.append(*(torch.randn(2, 2, count, width) for width in (4, 6, 4)), counts=counts)


def test_layers_in_step():
    cache = KVCache([layer(n) for n in range(3)])
    for each in cache.layers:
        fill(each, 5, counts=[5, 3])
    cache.check_in_step()
    assert cache.lengths == (5, 3)
    assert cache.length == 5
    assert (cache.batch, cache.capacity) == (2, 20)
    assert cache.nbytes == sum(each.nbytes for each in cache.layers) == 3 * cache.layers[0].nbytes
    cache.truncate([4, 3])
    assert [each.lengths for each in cache.layers] == [(4, 3)] * 3
    cache.reset()
    assert cache.lengths == (0, 0)


def test_layers_out_of_step_are_an_error_with_the_lengths_and_a_way_back():
    cache = KVCache([layer(n) for n in range(3)])
    for number, each in enumerate(cache.layers):
        fill(each, 6 if number < 2 else 4)
    for read in (cache.check_in_step, lambda: cache.length, lambda: cache.lengths):
        with pytest.raises(CacheError) as caught:
            read()
        text = str(caught.value)
        assert "layer 0 holds [6, 6]" in text
        assert "layer 2 holds [4, 4]" in text
        assert "truncate([4, 4])" in text
    cache.truncate([4, 4])
    assert cache.lengths == (4, 4)


def test_a_truncation_that_one_layer_refuses_changes_no_layer():
    cache = KVCache([layer(0, rollback=9), layer(1, rollback=1)])
    for each in cache.layers:
        fill(each, 12)
    with pytest.raises(CacheError, match="layer 1, batch row 0: truncate to 8"):
        cache.truncate(8)
    assert cache.lengths == (12, 12)


def test_layers_that_cannot_belong_together_are_refused():
    with pytest.raises(CacheError, match="at least one layer"):
        KVCache([])
    with pytest.raises(CacheError, match="layer 1 has batch 3 and capacity 20, that of layer 0 2 and 20"):
        KVCache([layer(0), layer(1, batch=3)])
    with pytest.raises(CacheError, match="capacity 21"):
        KVCache([layer(0), layer(1, capacity=21)])
