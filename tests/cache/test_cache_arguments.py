"""Caches and policies say in one line what they are, and name a wrong argument."""

from __future__ import annotations

import pytest
import torch

from dba_core.cache.kv_cache import KVCache
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import CacheError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch

TEXT = "ksem=q8_0@8,kgeo=fp16,v=fp32,resid=0"


def layer(number: int = 0, batch: int = 2) -> LayerCache:
    return LayerCache(
        registry=Registry.default(),
        k_sem=(1, 8),
        k_geo=(1, 2),
        v=(1, 3),
        batch=batch,
        capacity=10,
        policy=KVCachePolicy.parse(TEXT),
        layer=number,
    )


def append(cache: LayerCache, counts: list[int]) -> None:
    parts = (torch.randn(cache.batch, 1, max(counts), width) for width in (8, 2, 3))
    cache.append(*parts, counts=counts)


def test_a_policy_is_shown_as_what_makes_it() -> None:
    policy = KVCachePolicy.parse(TEXT)
    assert repr(policy) == f"KVCachePolicy.parse('{TEXT}')"
    assert eval(repr(policy), {"KVCachePolicy": KVCachePolicy}) == policy


def test_a_layers_cache_is_shown_in_one_line() -> None:
    cache = layer(4)
    size = 2 * 10 * ((8 + 2) + 2 * 2 + 3 * 4)  # q8_0: a byte a value and a scale; fp16; fp32
    rest = f"policy='{TEXT}', nbytes={size}, device='cpu')"
    assert repr(cache) == f"LayerCache(layer=4, batch=2, capacity=10, length=0, {rest}"
    append(cache, [3, 1])
    assert repr(cache) == f"LayerCache(layer=4, batch=2, capacity=10, lengths=[3, 1], {rest}"


def test_a_tensor_of_a_cache_is_shown_in_one_line() -> None:
    cache = layer(4)
    rest = "batch=2, capacity=10, nbytes={}, device='cpu')"
    assert repr(cache.k_sem) == (
        f"TensorStore(layer 4: k_sem, format='q8_0@8', heads=1, width=8, {rest.format(2 * 10 * (8 + 2))}"
    )
    assert repr(cache.k_geo) == (
        f"TensorStore(layer 4: k_geo, format='fp16', heads=1, width=2, {rest.format(2 * 10 * 2 * 2)}"
    )


def test_a_models_cache_is_shown_in_one_line_even_out_of_step() -> None:
    layers = [layer(number, batch=12) for number in range(3)]
    cache = KVCache(layers)
    size = 3 * 12 * 10 * 26
    assert repr(cache) == (
        f"KVCache(layers=3, batch=12, capacity=10, length=0, policy='{TEXT}', nbytes={size}, device='cpu')"
    )
    append(layers[0], [1] * 11 + [5])
    text = repr(cache)
    assert "lengths=[1, 1, 1, 1, 1, 1, 1, 1, ... 5 at most]" in text
    assert text.endswith("device='cpu', layers out of step)")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (3, "are a int; give a list of LayerCache"),
        (layer(), "are a LayerCache; give a list"),
        ([], "at least one layer"),
        ([layer(), None], "layer 1 of a KV cache is a NoneType; give a LayerCache"),
        ([layer(), layer(1, batch=3)], "layer 1 has batch 3"),
    ],
)
def test_wrong_layers_are_named(layers, text: str) -> None:
    with pytest.raises(CacheError, match=text):
        KVCache(layers)


def test_a_layer_that_is_given_twice_is_named_and_an_iterator_will_do() -> None:
    one = layer()
    with pytest.raises(CacheError, match="layer 1 of a KV cache is that of another layer"):
        KVCache([one, one])
    assert len(KVCache(layer(number) for number in range(2)).layers) == 2


@pytest.mark.parametrize(
    "length", [1.0, None, "1", torch.tensor(1.0), torch.tensor([[1], [1]]), [1.0, 1], [1], -1, 4]
)
def test_wrong_lengths_are_named_and_nothing_is_cut(length) -> None:
    first, second = layer(0), layer(1)
    for each in (first, second):
        append(each, [3, 3])
    with pytest.raises(CacheError, match="truncate"):
        KVCache([first, second]).truncate(length)
    assert (first.lengths, second.lengths) == ((3, 3), (3, 3))
