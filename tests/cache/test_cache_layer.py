"""LayerCache: what is read is what was appended, in any chunking, ragged or not, truncated or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cache_oracle import quantize

from dba_core.cache.bytes import bytes_per_token, residual_bytes
from dba_core.cache.layer import LayerCache
from dba_core.cache.places import Scatter
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, CachedTensor
from dba_core.errors import CacheError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch


MIXED = "ksem=q4_0@32,kgeo=q8_0@16,v=nf4@32,resid=5"
POLICIES = [
    MIXED,
    "ksem=q8_0,kgeo=q4_0@8,v=q8_0",
    "ksem=fp32,kgeo=fp16,v=bf16,resid=4",
    "ksem=fp16,kgeo=q4_0,v=q4_0,resid=3",
]
WIDTHS = (6, 10, 7)
HEADS = 3


def make(policy: str = MIXED, *, batch: int = 2, capacity: int = 40, widths=WIDTHS, **more) -> LayerCache:
    k_sem, k_geo, v = ((HEADS, width) for width in widths)
    return LayerCache(
        registry=Registry.default(),
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        batch=batch,
        capacity=capacity,
        policy=KVCachePolicy.parse(policy),
        **more,
    )


def tokens(count: int, *, batch: int = 2, seed: int = 0, widths=WIDTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, HEADS, count, width, generator=generator) for width in widths]


def stores(cache: LayerCache):
    return cache.k_sem, cache.k_geo, cache.v


def part(x, start: int, stop: int):
    return [each[:, :, start:stop] for each in x]


def same(a: LayerCache, b: LayerCache) -> None:
    """Equal lengths, and equal bits of everything that can be read."""
    assert a.lengths == b.lengths
    assert a.lengths_device.tolist() == b.lengths_device.tolist() == list(a.lengths)
    for one, two in zip(stores(a), stores(b), strict=True):
        assert torch.equal(one.stored(0, a.length), two.stored(0, b.length))
        for row, length in enumerate(a.lengths):
            assert torch.equal(window(one, row, length, a), window(two, row, length, b))


def window(store, row: int, length: int, cache: LayerCache):
    """The residual window of one row, straight from the ring."""
    if store.recent_ring is None:
        return torch.empty(0)
    ring = store.recent_ring
    slots = [p % ring.shape[2] for p in range(max(0, length - cache.residual_len), length)]
    return ring[row][:, slots]


@pytest.mark.parametrize("policy", POLICIES)
def test_stored_and_recent_are_the_formats_own_values(policy):
    cache, x = make(policy), tokens(12)
    cache.append(*x)
    assert cache.lengths == (12, 12)
    for store, given in zip(stores(cache), x, strict=True):
        assert store.stored(3, 9).shape == (2, HEADS, 6, store.head_dim)
        if store.qblock:
            expected = quantize(given.numpy(), store.format, store.qblock)[2]
            rtol = 3e-6 if store.format == "nf4" else 0  # the oracle constructs the nf4 levels
            np.testing.assert_allclose(store.stored(0, 12).double().numpy(), expected, rtol=rtol)
        else:
            kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[store.format]
            assert torch.equal(store.stored(0, 12), given.to(kind).float())
        assert torch.equal(store.stored(3, 9), store.stored(0, 12)[:, :, 3:9])
        assert torch.equal(store.as_stored(given), store.stored(0, 12))
        assert torch.equal(store.as_recent(given), store.recent(0, 12))
        rounded = given.half().float() if store.recent_ring is not None else store.stored(0, 12)
        assert torch.equal(store.recent(5, 11), rounded[:, :, 5:11])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reads_take_a_dtype(dtype):
    cache = make()
    cache.append(*tokens(4))
    for store, given in zip(stores(cache), tokens(4), strict=True):
        assert torch.equal(store.stored(0, 4, dtype=dtype), store.stored(0, 4).to(dtype))
        assert torch.equal(store.recent(0, 4, dtype), given.half().to(dtype))
        assert store.as_stored(given, dtype=dtype).dtype == store.as_recent(given, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("counts", [(19, 19), (19, 7), (3, 0)])
def test_read_takes_the_newest_from_the_window_and_the_others_as_stored(policy, counts):
    """Token by token, row by row, from the input itself."""
    cache, x = make(policy, rollback=2), tokens(19)
    cache.append(*x, counts=counts)
    for store, given in zip(stores(cache), x, strict=True):
        stored, expected = store.as_stored(given), torch.zeros_like(given)
        for row, length in enumerate(counts):
            for p in range(length):
                recent = store.recent_ring is not None and p >= length - cache.residual_len
                expected[row, :, p] = given[row, :, p].half().float() if recent else stored[row, :, p]
        longest = max(counts)
        for start, stop in ((0, longest), (0, 2), (longest - 2, longest), (1, 1), (1, longest)):
            assert torch.equal(store.read(start, stop), expected[:, :, start:stop])
            assert store.read(start, stop, dtype=torch.float64).dtype == torch.float64
        for row, length in enumerate(counts):
            assert torch.equal(store.read(0, length, row=row), expected[row : row + 1, :, :length])
            held_from = max(0, length - cache.residual_len)
            window = expected[row : row + 1, :, held_from:length]
            assert torch.equal(store.recent(held_from, length, row=row), window)
        with pytest.raises(CacheError, match="row 2 of 2 batch rows"):
            store.read(0, 1, row=2)
        with pytest.raises(CacheError, match="positions 0 to 20"):
            store.read(0, 20)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chunks", [[1] * 33, [33], [20, 1, 12], [3, 0, 30], [16, 17]])
def test_any_chunking_leaves_the_same_bits(policy, chunks):
    x, whole, chunked = tokens(33), make(policy, rollback=2), make(policy, rollback=2)
    whole.append(*x)
    start = 0
    for count in chunks:
        chunked.append(*part(x, start, start + count))
        start += count
    same(whole, chunked)


@pytest.mark.parametrize("policy", POLICIES)
def test_ragged_rows_hold_what_each_row_was_given(policy):
    """Row b of a ragged batch has the bits of a batch of one that was given only its tokens."""
    cache, x = make(policy, batch=3, rollback=2), tokens(20, batch=3)
    given = [[], [], []]
    start = 0
    for width, counts in ((9, [9, 4, 0]), (1, [1, 1, 1]), (8, [0, 8, 3]), (2, [1, 2, 0])):
        cache.append(*part(x, start, start + width), counts=counts)
        for row, count in enumerate(counts):
            given[row] += range(start, start + count)
        start += width
    assert cache.lengths == (11, 15, 4) == tuple(map(len, given))
    for row, indices in enumerate(given):
        alone = make(policy, batch=1, rollback=2)
        alone.append(*[each[row : row + 1, :, indices] for each in x])
        for ours, theirs in zip(stores(cache), stores(alone), strict=True):
            values = ours.stored(0, cache.length)[row]
            assert torch.equal(values[:, : len(indices)], theirs.stored(0, len(indices))[0])
            assert (values[:, len(indices) :] == 0).all()
            assert torch.equal(window(ours, row, len(indices), cache), window(theirs, 0, len(indices), alone))


def test_counts_hide_what_comes_after_them():
    cache, clean, x = make(), make(), tokens(6)
    clean.append(*[each[:, :, :4] for each in x], counts=[4, 2])
    for each in x:
        each[0, :, 4:] = float("nan")
        each[1, :, 2:] = float("inf")
    cache.append(*x, counts=[4, 2])
    same(cache, clean)


@pytest.mark.parametrize("counts", [[3, 3], [0, 0]])
def test_equal_counts_are_a_shorter_append(counts):
    cache, clean, x = make(), make(), tokens(5)
    cache.append(*x, counts=counts)
    clean.append(*part(x, 0, counts[0]))
    same(cache, clean)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("keep", [30, 29, 23, 0])
def test_truncate_then_append_equals_never_having_gone_there(policy, keep):
    x, other = tokens(40), tokens(8, seed=1)
    went, stayed = make(policy, rollback=7), make(policy, rollback=7)
    went.append(*part(x, 0, 27))
    went.append(*part(x, 27, 30))
    went.truncate(keep)
    stayed.append(*part(x, 0, keep))
    same(went, stayed)
    for step in range(8):
        went.append(*part(other, step, step + 1))
        stayed.append(*part(other, step, step + 1))
        same(went, stayed)


def test_truncate_per_row():
    x, cache = tokens(20), make(rollback=10)
    cache.append(*x, counts=[20, 12])
    cache.truncate([15, 12])
    assert cache.lengths == (15, 12)
    expected = make(rollback=10)
    expected.append(*x, counts=[15, 12])
    same(cache, expected)
    cache.truncate(12)
    assert cache.lengths == (12, 12)


def test_truncate_behind_the_ring_is_refused_and_says_how_far_it_reaches():
    cache, x = make(rollback=4, layer=7), tokens(30)
    cache.append(*x)
    with pytest.raises(CacheError) as caught:
        cache.truncate(25)
    text = str(caught.value)
    for word in (
        "layer 7",
        "row 0",
        "truncate to 25",
        "30 tokens",
        "position 20",
        "21 to 29",
        "from 26 to 30",
    ):
        assert word in text
    assert "rollback=" in text
    assert "now 4" in text
    assert cache.lengths == (30, 30)
    cache.truncate(26)
    with pytest.raises(CacheError, match="truncate to 25"):
        cache.truncate(25)
    cache.truncate(0)
    assert cache.lengths == (0, 0)


def test_what_the_ring_lost_stays_lost_after_a_truncation_and_a_short_append():
    cache, x = make(rollback=4), tokens(30)
    cache.append(*x)  # 9 slots: positions 21 to 29
    cache.truncate(27)
    cache.append(*part(x, 27, 28))
    for keep in (25, 20):
        with pytest.raises(CacheError, match=f"truncate to {keep}"):
            cache.truncate(keep)
    cache.truncate(26)
    assert cache.lengths == (26, 26)


def test_a_row_takes_each_ring_slot_at_most_once_in_a_ragged_append():
    """Two writes to one slot would have no defined order on a GPU."""
    place = Scatter.ragged([3, 0, 7], [13, 2, 5], torch.device("cpu"))
    (piece,) = place.in_ring(4)
    written = list(zip(piece.rows.tolist(), piece.positions.tolist(), strict=True))
    assert len(set(written)) == len(written) == 4 + 2 + 4
    assert piece.tokens.tolist() == [9, 10, 11, 12, 0, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", ["ksem=q8_0,kgeo=q4_0,v=nf4", "ksem=fp32,kgeo=fp16,v=bf16,resid=9"])
def test_without_a_residual_window_any_truncation_is_exact(policy):
    cache, x = make(policy, rollback=0), tokens(30)
    cache.append(*x)
    cache.truncate(3)
    expected = make(policy)
    expected.append(*part(x, 0, 3))
    same(cache, expected)


def test_reset_is_a_new_cache():
    cache, fresh = make(), make()
    cache.append(*tokens(30))
    cache.reset()
    assert cache.lengths == (0, 0)
    for each in (cache, fresh):
        each.append(*tokens(9, seed=3))
    same(cache, fresh)


def test_lengths_device_keeps_its_address():
    cache = make()
    device = cache.lengths_device
    cache.append(*tokens(3), counts=[3, 1])
    assert device.tolist() == [3, 1]
    cache.append(*tokens(2))
    cache.truncate([1, 1])
    assert cache.lengths_device is device
    assert device.dtype == torch.int32
    assert device.tolist() == [1, 1]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("widths", "heads"), [((6, 10, 7), 3), ((0, 8, 8), 1), ((1, 2, 1), 5), ((32, 64, 33), 2)]
)
@pytest.mark.parametrize("rollback", [None, 0, 9])
def test_nbytes_is_the_arithmetic(policy, widths, heads, rollback):
    parsed = KVCachePolicy.parse(policy)
    sem, geo, v = widths
    shape = AttentionShape(
        d_model=64, n_heads=heads, n_kv_heads=heads, sem_head_dim=sem, geo_head_dim=geo, v_head_dim=v
    )
    cache = LayerCache(
        registry=Registry.default(),
        k_sem=(heads, sem),
        k_geo=(heads, geo),
        v=(heads, v),
        batch=3,
        capacity=11,
        policy=parsed,
        rollback=rollback,
    )
    planes = [p for s in stores(cache) for p in (s.codes, s.scales, s.recent_ring) if p is not None]
    assert cache.nbytes == sum(plane.untyped_storage().nbytes() for plane in planes)
    assert cache.nbytes == 3 * (11 * bytes_per_token(shape, parsed) + residual_bytes(shape, parsed, rollback))


def test_an_absent_semantic_path_takes_nothing():
    widths = (0, 8, 8)
    cache = make("ksem=q4_0,kgeo=q8_0,v=q4_0,resid=4", widths=widths)
    cache.append(*tokens(6, widths=widths))
    cache.append(*tokens(3, widths=widths), counts=[3, 1])
    assert cache.k_sem.nbytes == 0
    assert cache.k_sem.recent_ring is None
    assert cache.k_sem.stored(0, 9).shape == (2, HEADS, 9, 0)
    assert cache.k_sem.as_stored(torch.empty(2, HEADS, 4, 0)).shape == (2, HEADS, 4, 0)
    cache.truncate(7)
    assert cache.k_sem.recent(2, 7).shape == (2, HEADS, 5, 0)


def test_tensors_may_have_different_head_counts():
    policy = KVCachePolicy.parse("ksem=q4_0,kgeo=q8_0,v=q4_0,resid=4")
    cache = LayerCache(
        registry=Registry.default(), k_sem=(1, 8), k_geo=(4, 8), v=(2, 6), batch=1, capacity=8, policy=policy
    )
    x = [torch.randn(1, g, 5, d) for g, d in ((1, 8), (4, 8), (2, 6))]
    cache.append(*x)
    for store, given in zip(stores(cache), x, strict=True):
        assert torch.equal(store.recent(1, 5), given[:, :, 1:].half().float())


def test_what_a_backend_reads_off_a_cache():
    cache = make(layer=3, rollback=6)
    assert cache.specs == (
        CachedTensor(n_heads=3, head_dim=6, format="q4_0", qblock=32),
        CachedTensor(n_heads=3, head_dim=10, format="q8_0", qblock=16),
        CachedTensor(n_heads=3, head_dim=7, format="nf4", qblock=32),
    )
    assert (cache.batch, cache.capacity, cache.layer, cache.residual_len, cache.rollback) == (2, 40, 3, 5, 6)
    assert cache.policy == KVCachePolicy.parse(MIXED)
    assert cache.k_sem.codes.shape == (2, 3, 40, 3)
    assert cache.k_sem.scales.shape == (2, 1, 40)
    assert cache.v.codes.shape == (2, 3, 40, 4)
    assert cache.k_geo.scales.shape == (2, 2, 40)
    assert cache.k_geo.recent_ring.shape == (2, 3, 11, 10)
    assert make().rollback == 64
    assert make("ksem=q4_0,kgeo=q4_0,v=q4_0,resid=100").rollback == 100


def test_reading_needs_no_gradient_and_appending_takes_tensors_that_do():
    cache = make("ksem=fp32,kgeo=q8_0,v=q4_0,resid=2")
    cache.append(*[x.requires_grad_() for x in tokens(4)])
    for store, given in zip(stores(cache), tokens(4), strict=True):
        assert not store.stored(0, 4).requires_grad
        assert not store.as_recent(given.requires_grad_()).requires_grad


def test_a_cache_made_and_filled_under_inference_mode_works_outside_of_it():
    with torch.inference_mode():
        cache = make()
        cache.append(*tokens(4))
    cache.append(*tokens(3, seed=1))
    cache.append(*tokens(3, seed=2), counts=[1, 3])
    cache.truncate(6)
    assert cache.lengths == (6, 6)


def test_autocast_changes_nothing():
    inside, outside = make(), make()
    outside.append(*tokens(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.append(*tokens(9))
        values = inside.v.stored(0, 9)
    same(inside, outside)
    assert torch.equal(values, outside.v.stored(0, 9))
