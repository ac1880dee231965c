"""What `forward` may be given: every wrong argument is named; a padding mask is never taken for [T,T]."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from attention_oracle import make_layer
from tolerances import TOL

from dba_core.attention.module import DecoupledAttention
from dba_core.cache.kv_cache import KVCache
from dba_core.config.attention import AttentionConfig
from dba_core.errors import CacheError, ConfigError

pytestmark = pytest.mark.torch

EXACT = "ksem=fp32,kgeo=fp32,v=fp32"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    QUANTIZED = torch.quantize_per_tensor(torch.ones(2, 5, 24), 0.1, 0, torch.quint8)
    COLUMNS = torch.ones(2, 5, 24).to_sparse_csr()
    NESTED = torch.nested.nested_tensor([torch.ones(5, 24), torch.ones(3, 24)])


@pytest.mark.parametrize("batch", [5, 3, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_padding_is_refused_and_what_the_error_says_to_pass_is_right(batch: int, dtype: torch.dtype) -> None:
    """Left padding: RoPE is relative, so a padded row gives what its own tokens give alone."""
    layer = make_layer(mode="decoupled")
    x = torch.randn(batch, 5, 24)
    padding = torch.ones(batch, 5, dtype=torch.bool)
    padding[0, :2] = False
    with pytest.raises(ValueError, match=r"padding.*mask\.bool\(\)\[:, None, None, :\]"):
        layer(x, mask=padding.to(dtype))
    y = layer(x, mask=padding.to(dtype).bool()[:, None, None, :])
    torch.testing.assert_close(y[0, 2:], layer(x[:1, 2:])[0], **TOL["float32"])
    torch.testing.assert_close(y[1:], layer(x[1:]), **TOL["float32"])


def test_a_mask_that_could_be_meant_two_ways_is_refused_and_both_ways_can_be_said() -> None:
    layer = make_layer(mode="decoupled")
    x = torch.randn(4, 4, 24)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[3, 1] = False
    with pytest.raises(ValueError, match=r"could be a padding mask \[B,T\] or a mask \[T,T\]"):
        layer(x, mask=mask)
    plain, square, padding = layer(x), layer(x, mask=mask[None, None]), layer(x, mask=mask[:, None, None, :])
    assert (square[:, 3] - plain[:, 3]).abs().amax(-1).min() > 1e-4, "token 3 of every row"
    torch.testing.assert_close(square[:, :3], plain[:, :3], **TOL["float32"])
    assert (padding[3] - plain[3]).abs().amax(-1)[2:].min() > 1e-4, "the later tokens of row 3"
    torch.testing.assert_close(padding[:3], plain[:3], **TOL["float32"])
    with pytest.raises(ValueError, match=r"\[B,T,T\] as mask\[:, None\] and \[H,T,T\] as mask\[None\]"):
        layer(x, mask=mask.expand(4, 4, 4))
    torch.testing.assert_close(layer(x[:2], mask=mask.expand(4, 4, 4)), square[:2], **TOL["float32"])
    torch.testing.assert_close(layer(x[:2], mask=mask), square[:2], **TOL["float32"])


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(5, dtype=torch.bool), r"shape \[5\]"),
        (torch.ones(1, 1, 1, 5, 5, dtype=torch.bool), r"shape \[1, 1, 1, 5, 5\]"),
        (torch.ones(2, 1, 5, 4, dtype=torch.bool), r"shape \[2, 1, 5, 4\]"),
        (torch.zeros(5, 5), "dtype torch.float32"),
        (torch.ones(5, 5, dtype=torch.bool).to_sparse(), "mask has layout torch.sparse_coo"),
        (torch.ones(5, 5, dtype=torch.bool, device="meta"), "mask is on meta, x on cpu"),
        ([[True] * 5] * 5, "mask is a list"),
    ],
)
def test_other_masks_are_named(mask, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_layer(mode="standard")(torch.randn(2, 5, 24), mask=mask)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ([[1.0] * 24], "x is a list"),
        (torch.ones(2, 5, 24, dtype=torch.int64), "dtype torch.int64, the layer's weights torch.float32"),
        (torch.ones(2, 5, 24, dtype=torch.bfloat16), "dtype torch.bfloat16, .* `.to\\(dtype\\)`"),
        (torch.ones(2, 5, 24, device="meta"), "x is on meta, the layer's weights on cpu"),
        (torch.ones(2, 5, 24).to_sparse(), r"x has layout torch.sparse_coo; give .*to_dense\(\)"),
        (COLUMNS, "x has layout torch.sparse_csr"),
        (QUANTIZED, r"x is quantized \(torch.quint8\); give `x.dequantize\(\)`"),
        (NESTED, "x is a nested tensor; give a padded one"),
        (torch.ones(2, 24), r"shape \[2, 24\]; give \[batch, tokens, 24\]"),
        (torch.ones(2, 5, 23), r"shape \[2, 5, 23\]; give \[batch, tokens, 24\]"),
    ],
)
def test_wrong_inputs_are_named_with_and_without_a_cache(x, text: str) -> None:
    layer = make_layer(mode="decoupled")
    cache = layer.new_cache(batch=2, capacity=8, policy=EXACT)
    for given in (None, cache):
        with pytest.raises(ValueError, match=text):
            layer(x, cache=given)
    assert cache.lengths == (0, 0)


def test_wrong_caches_and_counts_are_named() -> None:
    layer = make_layer(mode="decoupled")
    x = torch.randn(2, 3, 24)
    cache = layer.new_cache(batch=2, capacity=8, policy=EXACT)
    with pytest.raises(CacheError, match="cache is a KVCache; give one layer's cache"):
        layer(x, cache=KVCache([cache]))
    for counts, text in ((3, "counts=3; give a list"), ([1], "1 counts for 2"), ([1, 2.0], "count 2.0")):
        with pytest.raises(CacheError, match=text):
            layer(x, cache=cache, counts=counts)
    with pytest.raises(ValueError, match="counts=3 without a cache"):
        layer(x, counts=3)
    assert cache.lengths == (0, 0)


WHOLE = [np.array, torch.tensor, lambda counts: tuple(map(np.int32, counts)), lambda counts: counts]


@pytest.mark.parametrize("made", WHOLE)
@pytest.mark.parametrize("tokens", [3, 1])
def test_counts_may_be_whole_numbers_of_any_library(made, tokens: int) -> None:
    layer = make_layer(mode="decoupled")
    x = torch.randn(2, tokens, 24)
    cache, plain = (
        layer.new_cache(batch=whole(2), capacity=whole(8), policy=EXACT, rollback=whole(4))
        for whole in (np.int64, int)
    )
    y = layer(x, cache=cache, counts=made([tokens, 0]))
    assert torch.equal(y, layer(x, cache=plain, counts=[tokens, 0]))
    assert (y[1] == 0).all()
    assert cache.lengths == (tokens, 0)
    assert {type(n) for n in (*cache.lengths, cache.batch, cache.capacity, cache.rollback)} == {int}
    cache.truncate(made([1, 0]))
    assert cache.lengths == (1, 0)
    cache.truncate(np.int16(0))
    assert cache.lengths == (0, 0)


@pytest.mark.parametrize("made", [np.array, torch.tensor])
@pytest.mark.parametrize("counts", [[1.0, 2.0], [True, False], [[1, 2]]])
def test_but_no_fractions_truth_values_or_tables(made, counts) -> None:
    layer = make_layer(mode="decoupled")
    cache = layer.new_cache(batch=2, capacity=8, policy=EXACT)
    with pytest.raises(CacheError, match=r"counts=|count 1\.0|count True"):
        layer(torch.randn(2, 3, 24), cache=cache, counts=made(counts))
    with pytest.raises(CacheError, match=r"truncate (to|got)"):
        cache.truncate(made(counts))
    for wrong in (np.bool_(True), torch.tensor(True), np.float64(2), torch.tensor(2.0)):
        with pytest.raises(CacheError, match="capacity of the cache is"):
            layer.new_cache(batch=2, capacity=wrong, policy=EXACT)
        with pytest.raises(CacheError, match=r"truncate (to|got)"):
            cache.truncate(wrong)
    assert cache.lengths == (0, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch": -1}, "batch of the cache is -1"),
        ({"batch": True}, "batch of the cache is True"),
        ({"capacity": 0}, "capacity of the cache is 0"),
        ({"capacity": 4.0}, "capacity of the cache is 4.0"),
        ({"capacity": None}, "capacity of the cache is None"),
        ({"rollback": -2}, "rollback of the cache is -2"),
        ({"policy": None}, "policy of the cache is None; give a KVCachePolicy"),
        ({"policy": {"ksem": "fp16"}}, "policy of the cache is {'ksem': 'fp16'}"),
        ({"policy": "fp16"}, "not name=value"),
    ],
)
def test_wrong_caches_are_not_made(change: dict[str, object], text: str) -> None:
    given = {"batch": 1, "capacity": 4, "policy": EXACT, **change}
    with pytest.raises((CacheError, ConfigError), match=text):
        make_layer(mode="decoupled").new_cache(**given)


def test_a_layer_says_its_layout_in_one_line() -> None:
    config = AttentionConfig(
        d_model=24, n_heads=4, n_kv_heads=2, sem_head_dim=2, geo_head_dim=4, v_head_dim=5
    )
    text = DecoupledAttention(config, layer=3).extra_repr()
    assert text == (
        "layer 3: decoupled, d_model=24, n_heads=4, n_kv_heads=2, "
        "sem_head_dim=2, geo_head_dim=4, v_head_dim=5"
    )
    assert text in repr(DecoupledAttention(config, layer=3))
    shared = AttentionConfig(
        d_model=24, n_heads=4, n_kv_heads=2, sem_kv_heads=1, sem_head_dim=2, geo_head_dim=4, v_head_dim=5
    )
    assert "n_kv_heads=2, sem_kv_heads=1, sem_head_dim=2" in repr(DecoupledAttention(shared))
