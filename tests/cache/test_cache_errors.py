"""LayerCache refuses what would falsify it, says what and where, and is then exactly as it was."""

from __future__ import annotations

import pytest
import torch

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import CacheError, PluginError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch


HEADS, WIDTHS, CAPACITY = 2, (6, 8, 5), 12
BLOCKS = "ksem=q4_0,kgeo=q8_0,v=nf4,resid=3"


def make(policy: str = BLOCKS, **more) -> LayerCache:
    sizes = dict(zip(("k_sem", "k_geo", "v"), ((HEADS, width) for width in WIDTHS), strict=True))
    settings = {"batch": 2, "capacity": CAPACITY, "layer": 4, "rollback": 1, **sizes, **more}
    return LayerCache(registry=Registry.default(), policy=KVCachePolicy.parse(policy), **settings)


def tokens(count: int, *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, HEADS, count, width, generator=generator) for width in WIDTHS]


def state(cache: LayerCache):
    """Everything that can be observed, copied."""
    seen = [cache.lengths_device.clone(), torch.tensor(cache.lengths)]
    for store in (cache.k_sem, cache.k_geo, cache.v):
        seen.append(store.stored(0, cache.length).clone())
        if store.recent_ring is not None:
            seen.append(store.recent_ring.clone())
    return seen


def unchanged(cache: LayerCache, before) -> None:
    after = state(cache)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def refused(cache: LayerCache, x, *, counts=None) -> str:
    """The error's text, after checking that nothing changed."""
    before = state(cache)
    with pytest.raises(CacheError) as caught:
        cache.append(*x, counts=counts)
    unchanged(cache, before)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 65505.0, -1e6])
@pytest.mark.parametrize(("which", "name"), [(0, "k_sem"), (1, "k_geo"), (2, "v")])
def test_a_value_that_does_not_fit_is_named_with_tensor_layer_row_and_position(value, which, name):
    cache, x = make(), tokens(4)
    cache.append(*tokens(5, seed=1))
    x[which][1, 1, 2, 3] = value
    text = refused(cache, x)
    for word in (
        f"layer 4: {name}",
        "batch row 1",
        "position 7 ",
        "token 2",
        "head 1",
        "channel 3",
        f"{value:g}",
    ):
        assert word in text
    assert "fp16 residual window" in text
    assert "65504" in text
    assert "nothing was written" in text


def test_in_a_ragged_batch_the_position_is_the_rows_own():
    cache, x = make(), tokens(4)
    cache.append(*tokens(5, seed=1), counts=[5, 2])
    x[2][1, 0, 3, 1] = float("nan")
    text = refused(cache, x)
    assert "batch row 1, position 5 (token 3 of the append, head 0, channel 1): value nan" in text


def test_of_several_bad_values_the_first_by_row_and_token_is_named():
    x = tokens(4)
    x[1][0, 1, 1, 0] = float("inf")
    x[1][0, 0, 2, 0] = float("nan")
    assert "position 1 (token 1 of the append, head 1, channel 0): value inf" in refused(make(), x)


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        ("ksem=fp16,kgeo=fp32,v=fp32", 65504.0),
        ("ksem=fp32,kgeo=fp32,v=fp32", float(torch.finfo(torch.float32).max)),
        ("ksem=bf16,kgeo=fp32,v=fp32", float(torch.finfo(torch.bfloat16).max)),
        ("ksem=q4_0,kgeo=fp32,v=fp32", 2.0**126),
        ("ksem=q8_0,kgeo=fp32,v=fp32", 2.0**126),
        ("ksem=nf4,kgeo=fp32,v=fp32,resid=2", 65504.0),
        ("ksem=fp32,kgeo=q8_0,v=fp32,resid=2", float(torch.finfo(torch.float32).max)),
    ],
)
def test_the_range_of_each_format_ends_where_it_says(policy, limit):
    cache, x = make(policy), [each.double() for each in tokens(1)]
    x[0][0, 0, 0, 0] = -limit
    cache.append(*x)
    assert torch.isfinite(cache.k_sem.stored(0, 1)).all()
    x[0][0, 0, 0, 0] = limit * (1 + 1e-6)
    assert "layer 4: k_sem, batch row 0, position 1" in refused(cache, x)


def test_overflow_names_length_tokens_capacity_and_a_way_out():
    cache = make()
    cache.append(*tokens(9))
    text = refused(cache, tokens(4))
    for word in (
        "layer 4",
        "row 0",
        "append of 4",
        "length of 9",
        "capacity of 12",
        "by 1",
        "larger capacity",
        "truncate",
    ):
        assert word in text
    cache.append(*tokens(3))
    assert cache.lengths == (12, 12)
    refused(cache, tokens(1))


def test_overflow_of_one_row_of_a_ragged_batch():
    cache = make()
    cache.append(*tokens(9), counts=[3, 9])
    assert "batch row 1: append of 4 tokens to a length of 9" in refused(cache, tokens(4))
    cache.append(*tokens(4), counts=[4, 3])
    assert cache.lengths == (7, 12)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_wrong_shapes_are_named(which):
    name = ("k_sem", "k_geo", "v")[which]
    for change in (lambda x: x[:1], lambda x: x[:, :1], lambda x: x[..., :-1], lambda x: x[0]):
        x = tokens(3)
        x[which] = change(x[which])
        text = refused(make(), x)
        assert f"layer 4: {name}" in text
        assert str(list(x[which].shape)) in text


def test_tensors_of_different_token_counts_are_refused():
    x = [*tokens(3)[:2], tokens(2)[2]]
    text = refused(make(), x)
    assert "layer 4: v" in text
    assert "[2, 2, 2, 5]" in text
    assert "[2, 2, 3, 5]" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_dtype_that_is_no_float_is_refused(dtype):
    x = tokens(1)
    x[1] = torch.zeros(2, HEADS, 1, WIDTHS[1], dtype=dtype)
    text = refused(make(), x)
    assert f"layer 4: k_geo: append got dtype {dtype}" in text
    assert "float32, bfloat16, float16, float64" in text


def test_another_device_is_refused():
    x = tokens(1)
    x[2] = x[2].to("meta")
    assert "layer 4: v: append got a tensor on meta, the cache is on cpu" in refused(make(), x)


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [1, 4], [-1, 2], [1.0, 2], [True, 2]])
def test_counts_that_make_no_sense_are_refused(counts):
    text = refused(make(), tokens(3), counts=counts)
    assert "layer 4" in text
    if len(counts) == 2:
        assert "allowed: whole numbers from 0 to 3" in text
    else:
        assert f"{len(counts)} counts for 2 batch rows" in text


@pytest.mark.parametrize(
    ("length", "words"), [(6, "0 to 5"), (-1, "0 to 5"), (True, "True"), ([5, 6], "row 1")]
)
def test_truncate_refuses_lengths_that_are_not_there(length, words):
    cache = make()
    cache.append(*tokens(5))
    before = state(cache)
    with pytest.raises(CacheError, match=words):
        cache.truncate(length)
    with pytest.raises(CacheError, match="1 lengths for 2 batch rows"):
        cache.truncate([3])
    unchanged(cache, before)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6), (6, 6)])
def test_reading_what_is_not_there_is_refused(start, stop):
    cache = make()
    cache.append(*tokens(5), counts=[5, 3])
    with pytest.raises(CacheError, match=rf"layer 4: v: positions {start} to {stop} .* 0 to 5"):
        cache.v.stored(start, stop)


def test_recent_refuses_what_the_ring_no_longer_holds():
    cache = make()
    cache.append(*tokens(10))
    assert cache.v.recent(6, 10).shape[2] == 4
    with pytest.raises(CacheError, match=r"layer 4: v: recent\(5, 10\).*ring of 4 tokens holds 6 to 9"):
        cache.v.recent(5, 10)
    cache.truncate([10, 9])
    with pytest.raises(CacheError, match=r"equal length, got lengths \[10, 9\]"):
        cache.v.recent(8, 9)


def test_recent_goes_by_the_row_that_lost_most():
    cache = make()
    cache.append(*tokens(10), counts=[10, 9])
    cache.truncate(9)
    assert cache.v.recent(6, 9).shape[2] == 3
    with pytest.raises(CacheError, match="holds 6 to 8"):
        cache.v.recent(5, 9)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"capacity": 0}, {"rollback": -1}, {"k_sem": (0, 4)}, {"v": (2, -1)}, {"capacity": 2.5}],
)
def test_sizes_that_make_no_cache_are_refused(wrong):
    with pytest.raises(CacheError, match="allowed: whole numbers from"):
        make(**wrong)


class BrokenError(RuntimeError):
    """What the tests inject."""


def explode(*_arguments, **_named):
    raise BrokenError


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("where", ["encode v", "write k_geo", "write v", "lengths"])
def test_a_failure_anywhere_in_an_append_changes_nothing(monkeypatch, ragged, count, where):
    """Afterwards the cache goes on as one that never saw the failed append, window and rollback included."""
    cache, control = make(), make()
    for each in (cache, control):
        each.append(*tokens(5, seed=1), counts=[5, 3] if ragged else None)
    before = state(cache)
    with monkeypatch.context() as patch:
        if where == "lengths":
            patch.setattr(cache._rows, "advance", lambda _: explode(cache.lengths_device.add_(100)))
        else:
            what, name = where.split()
            patch.setattr({"k_geo": cache.k_geo, "v": cache.v}[name], what, explode)
        with pytest.raises(BrokenError):
            cache.append(*tokens(count))
    unchanged(cache, before)
    for each in (cache, control):
        each.truncate([min(length, 4) for length in each.lengths])
        each.append(*tokens(2, seed=2))
    unchanged(cache, state(control))


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_what_a_codec_raises_names_its_format(method: str) -> None:
    class Failing:
        def __getattr__(self, name: str):
            return self.fail if name == method else getattr(right, name)

        def fail(self, *planes):
            raise OSError("gone")

    cache = make("ksem=q4_0,kgeo=q8_0,v=nf4")
    cache.append(*tokens(2))
    right, cache.v.codec = cache.v.codec, Failing()
    before = cache.lengths
    named = r"^kv_format 'nf4' .* failed when it was called \(OSError: gone\)"
    with pytest.raises(PluginError, match=named) as caught:
        cache.v.stored(0, 2) if method == "decode" else cache.append(*tokens(1))
    assert isinstance(caught.value.__cause__, OSError)
    assert cache.lengths == before
