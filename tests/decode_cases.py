"""Caches, queries and the dense float64 answer, for the tests of every decode backend."""

from __future__ import annotations

import attrs
import torch

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, CachedTensor, DecodeRequest, NullKV
from dba_core.registry import Registry

#: (n_heads, heads of k_sem, of k_geo, of v, Ds, Dg, Dv).
SIZES = ((4, 4, 4, 4, 2, 4, 6), (4, 2, 2, 2, 3, 6, 5), (3, 1, 1, 1, 0, 8, 7), (6, 1, 3, 2, 5, 2, 1))


def request(sizes=SIZES[0], **changes: object) -> DecodeRequest:
    n_heads, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    base = DecodeRequest(
        shape=AttentionShape(
            d_model=8, n_heads=n_heads, n_kv_heads=geo_heads, sem_head_dim=sem, geo_head_dim=geo, v_head_dim=v
        ),
        k_sem=CachedTensor(n_heads=sem_heads, head_dim=sem, format="fp16"),
        k_geo=CachedTensor(n_heads=geo_heads, head_dim=geo, format="fp16"),
        v=CachedTensor(n_heads=v_heads, head_dim=v, format="fp16"),
        residual_len=0,
        batch=2,
        capacity=16,
        has_null=False,
    )
    return attrs.evolve(base, **changes)


def filled(sizes, policy: str, lengths, *, total: int = 13, poison: bool = False):
    """A cache with rows of these lengths, and the k_sem, k_geo, v that went in, [B,G,total,D]."""
    _, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    cache = LayerCache(
        registry=Registry.default(),
        k_sem=(sem_heads, sem),
        k_geo=(geo_heads, geo),
        v=(v_heads, v),
        batch=len(lengths),
        capacity=total + 3,
        policy=KVCachePolicy.parse(policy),
        rollback=2,
    )
    if poison:
        for plane in planes(cache):
            if plane.is_floating_point():
                plane.fill_(torch.nan)
    tensors = [
        torch.randn(len(lengths), g, total, d) for g, d in ((sem_heads, sem), (geo_heads, geo), (v_heads, v))
    ]
    cache.append(*tensors, counts=lengths)
    return cache, tensors


def planes(cache: LayerCache):
    stores = (cache.k_sem, cache.k_geo, cache.v)
    every = [plane for s in stores for plane in (s.codes, s.scales, s.recent_ring) if plane is not None]
    return [*every, cache.lengths_device]


def queries(sizes, batch: int = 2):
    return torch.randn(batch, sizes[0], sizes[4]), torch.randn(batch, sizes[0], sizes[5])


def random_null(sizes) -> NullKV:
    _, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    return NullKV(
        k_sem=torch.randn(sem_heads, sem), k_geo=torch.randn(geo_heads, geo), v=torch.randn(v_heads, v)
    )


def repeated(x, n_heads: int, dim: int):
    """One KV head per query head, so that tensors with different numbers of heads meet in the oracle."""
    return x.repeat_interleave(n_heads // x.shape[dim], dim=dim)


def expected(q_sem, q_geo, cache, tensors, null: NullKV | None):
    """out [B,H,Dv] and lse [B,H] in float64, row by row; the newest tokens are the input rounded to fp16."""
    n_heads, outs, lses = q_geo.shape[1], [], []
    for row, length in enumerate(cache.lengths):
        is_recent = torch.arange(length)[:, None] >= length - cache.residual_len
        keys = []
        for store, x in zip((cache.k_sem, cache.k_geo, cache.v), tensors, strict=True):
            stored = store.stored(0, length)[row].double()  # [G, length, D]
            recent = x[row, :, :length].half().double() if store.quantized else stored
            keys.append(repeated(torch.where(is_recent, recent, stored), n_heads, 0))
        if null is not None:
            nulls = (repeated(t.double(), n_heads, 0)[:, None] for t in (null.k_sem, null.k_geo, null.v))
            keys = [torch.cat([first, rest], dim=1) for first, rest in zip(nulls, keys, strict=True)]
        scores = torch.einsum("hd,hnd->hn", q_sem[row].double(), keys[0])
        scores = scores + torch.einsum("hd,hnd->hn", q_geo[row].double(), keys[1])
        outs.append(torch.einsum("hn,hnd->hd", torch.softmax(scores, dim=-1), keys[2]))
        lses.append(torch.logsumexp(scores, dim=-1))
    return torch.stack(outs), torch.stack(lses)
