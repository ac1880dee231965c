"""Prefill into a cache against a dense oracle with the window's semantics, in any chunking, ragged or not.

The oracle takes the stored values from the cache itself (their own tests check those), the recent ones by
rounding to fp16, and chooses between them per query and key.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import POLICIES, windowed_attention
from tolerances import TOL

from dba_core.attention import prefill
from dba_core.attention.prefill import prefill_attention
from dba_core.attention.projections import Heads
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import NullKV
from dba_core.errors import CacheError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch

T = 23
#: (n_heads, kv_heads, Ds, Dg, Dv): plain, grouped with odd widths, no semantic path, wide values.
SIZES = ((4, 4, 4, 4, 8), (4, 2, 3, 6, 5), (2, 2, 0, 8, 8), (4, 1, 2, 4, 11))
CHUNKS = ((T,), (1, T - 1), (9, 14), (6, 1, 1, 10, 5), (8,) * 2 + (7,))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that T tokens cross several."""
    monkeypatch.setattr(prefill, "KEY_BLOCK", 6)
    monkeypatch.setattr(prefill, "QUERY_BLOCK", 4)


def random_heads(sizes, *, batch=2, q_len=T) -> Heads:
    n_heads, kv_heads, sem, geo, v = sizes
    shapes = {
        "q_sem": (n_heads, sem),
        "q_geo": (n_heads, geo),
        "k_sem": (kv_heads, sem),
        "k_geo": (kv_heads, geo),
    }
    return Heads(
        **{n: torch.randn(batch, h, q_len, d) for n, (h, d) in ({**shapes, "v": (kv_heads, v)}).items()}
    )


def part(heads: Heads, tokens: slice, rows: slice = slice(None)) -> Heads:
    return Heads(
        q_sem=heads.q_sem[rows, :, tokens],
        q_geo=heads.q_geo[rows, :, tokens],
        k_sem=heads.k_sem[rows, :, tokens],
        k_geo=heads.k_geo[rows, :, tokens],
        v=heads.v[rows, :, tokens],
    )


def new_cache(sizes, policy: str, *, batch=2, capacity=T + 3) -> LayerCache:
    _, kv_heads, sem, geo, v = sizes
    return LayerCache(
        registry=Registry.default(),
        k_sem=(kv_heads, sem),
        k_geo=(kv_heads, geo),
        v=(kv_heads, v),
        batch=batch,
        capacity=capacity,
        policy=KVCachePolicy.parse(policy),
    )


def random_null(sizes) -> NullKV:
    _, kv_heads, sem, geo, v = sizes
    return NullKV(
        k_sem=torch.randn(kv_heads, sem), k_geo=torch.randn(kv_heads, geo), v=torch.randn(kv_heads, v)
    )


def expected(heads: Heads, cache: LayerCache, null: NullKV | None = None, row: int | None = None):
    """All tokens of `heads` (one row of the batch, or all) at positions 0.., which the cache holds."""
    rows = slice(None) if row is None else slice(row, row + 1)
    q_len = heads.v.shape[2]
    stores = (cache.k_sem, cache.k_geo, cache.v)
    stored = [store.stored(0, q_len)[rows] for store in stores]
    recent = [
        x[rows].half() if store.quantized else kept
        for store, x, kept in zip(stores, (heads.k_sem, heads.k_geo, heads.v), stored, strict=True)
    ]
    return windowed_attention(
        heads.q_sem[rows],
        heads.q_geo[rows],
        stored=stored,
        recent=recent,
        window=cache.policy.residual,
        start=0,
        null=null,
    )


def in_chunks(heads: Heads, cache: LayerCache, chunks, null: NullKV | None = None):
    outs, start = [], 0
    for size in chunks:
        outs.append(prefill_attention(part(heads, slice(start, start + size)), cache, null=null))
        start += size
    return torch.cat(outs, dim=2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("number", range(len(SIZES)))
def test_any_chunking_equals_the_oracle(policy: str, number: int) -> None:
    sizes = SIZES[number]
    heads = random_heads(sizes)
    null = random_null(sizes) if number % 2 else None
    whole = None
    for chunks in CHUNKS:
        cache = new_cache(sizes, policy)
        out = in_chunks(heads, cache, chunks, null)
        torch.testing.assert_close(out.double(), expected(heads, cache, null), **TOL["float32"])
        whole = out if whole is None else whole
        torch.testing.assert_close(out, whole, **TOL["float32"])


@pytest.mark.parametrize("policy", POLICIES)
def test_real_blocks_and_a_chunk_longer_than_ring_and_blocks(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    sizes = SIZES[1]
    heads = random_heads(sizes, batch=1, q_len=2 * prefill.QUERY_BLOCK + 77)
    cache = new_cache(sizes, policy, batch=1, capacity=400)
    out = in_chunks(heads, cache, (131, heads.v.shape[2] - 131))
    torch.testing.assert_close(out.double(), expected(heads, cache), **TOL["float32"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("with_null", [False, True])
def test_ragged_rows_equal_rows_of_their_own(policy: str, with_null: bool) -> None:
    """Prompts of different lengths, then a chunk that starts at different positions, padded with NaN."""
    sizes, lengths = SIZES[1], (9, 0, 16)
    heads = random_heads(sizes, batch=3)
    null = random_null(sizes) if with_null else None
    cache = new_cache(sizes, policy, batch=3)
    first = part(heads, slice(0, max(lengths)))
    first = spoiled(first, lengths)
    outs = [prefill_attention(first, cache, null=null, counts=lengths)]
    counts = tuple(min(7, T - n) for n in lengths)
    second = Heads(
        **{
            name: torch.stack([whole[b, :, n : n + 7] for b, n in enumerate(lengths)])
            for name, whole in vars_of(heads).items()
        }
    )
    outs.append(prefill_attention(spoiled(second, counts), cache, null=null, counts=counts))
    assert cache.lengths == tuple(n + c for n, c in zip(lengths, counts, strict=True))
    for row, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        alone = new_cache(sizes, policy, batch=1)
        tokens = part(heads, slice(0, n + count), slice(row, row + 1))
        wanted = prefill_attention(tokens, alone, null=null)
        torch.testing.assert_close(outs[0][row, :, :n], wanted[0, :, :n], **TOL["float32"])
        torch.testing.assert_close(outs[1][row, :, :count], wanted[0, :, n:], **TOL["float32"])
        assert outs[0][row, :, n:].eq(0).all()
        assert outs[1][row, :, count:].eq(0).all()


def vars_of(heads: Heads):
    return {name: getattr(heads, name) for name in ("q_sem", "q_geo", "k_sem", "k_geo", "v")}


def spoiled(heads: Heads, counts) -> Heads:
    """NaN in place of the tokens that are not taken."""
    drop = torch.arange(heads.v.shape[2]) >= torch.tensor(counts)[:, None]  # [B, T]
    return Heads(**{n: x.masked_fill(drop[:, None, :, None], torch.nan) for n, x in vars_of(heads).items()})


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_past_the_length_does_not_matter(policy: str) -> None:
    """Truncation leaves old values behind, and memory may hold anything: NaN in all of it changes nothing."""
    sizes = SIZES[0]
    heads = random_heads(sizes)
    clean, dirty = new_cache(sizes, policy), new_cache(sizes, policy)
    for store in (dirty.k_sem, dirty.k_geo, dirty.v):
        for plane in (store.codes, store.scales, store.recent_ring):
            if plane is not None and plane.is_floating_point():
                plane.fill_(torch.nan)
    for cache in (clean, dirty):
        prefill_attention(part(heads, slice(0, 5)), cache, counts=[5, 2])
    outs = [prefill_attention(part(heads, slice(5, 17)), cache, counts=[12, 4]) for cache in (clean, dirty)]
    assert torch.isfinite(outs[1]).all()
    assert torch.equal(outs[0], outs[1])


def test_a_refused_chunk_leaves_the_cache_as_it_was() -> None:
    sizes = SIZES[0]
    heads, cache = random_heads(sizes), new_cache(sizes, POLICIES[3])
    prefill_attention(part(heads, slice(0, 10)), cache)
    bad = part(heads, slice(10, 13))
    bad.v[1, 2, 1, 3] = torch.inf
    with pytest.raises(CacheError, match="v, batch row 1, position 11"):
        prefill_attention(bad, cache)
    with pytest.raises(CacheError, match="capacity"):
        prefill_attention(heads, cache)
    assert cache.lengths == (10, 10)
    bad.v[1, 2, 1, 3] = 0.5
    out = prefill_attention(bad, cache)
    fresh = new_cache(sizes, POLICIES[3])
    wanted = in_chunks(part(heads, slice(0, 13)), fresh, (13,))[:, :, 10:]
    torch.testing.assert_close(out, wanted, **TOL["float32"])


def test_no_matrix_of_all_queries_and_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real blocks: masks are of constant size, and no more than a block of the prefix is dequantized."""
    monkeypatch.undo()
    sizes, n = (2, 2, 2, 2, 2), 3000
    masks, reads = [], []

    def spy_partial(q, k, v, *, mask=None, causal=False):
        masks.append(0 if mask is None else mask.shape[-1] * mask.shape[-2])
        return real_partial(q, k, v, mask=mask, causal=causal)

    def spy_stored(self, start, stop, **options):
        reads.append(stop - start)
        return real_stored(self, start, stop, **options)

    cache = new_cache(sizes, "ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=100", batch=1, capacity=n + 700)
    prefill_attention(random_heads(sizes, batch=1, q_len=n), cache)
    real_partial, real_stored = prefill.partial_attention, type(cache.v).stored
    monkeypatch.setattr(prefill, "partial_attention", spy_partial)
    monkeypatch.setattr(type(cache.v), "stored", spy_stored)
    prefill_attention(random_heads(sizes, batch=1, q_len=700), cache)
    assert max(masks) <= prefill.QUERY_BLOCK * (2 * prefill.QUERY_BLOCK + 2 * 100)
    assert max(reads) <= prefill.KEY_BLOCK
    assert sum(reads) <= 3 * (n + 700)
    assert len(masks) < 30
