"""The dense answer of the decode contract in float64: one softmax over all keys of a row, nothing in blocks.

    score_j = q_sem . k_sem_j + q_geo . k_geo_j,    out = softmax(score) V,    lse = log sum_j e^score_j

It reads what is stored through the cache's own decoder; the newest tokens are the inputs rounded to fp16 for
block formats. It can be wrong on purpose, to tell in a report which mistake a backend makes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dba_core.contracts import NullKV
from dba_core.testing.decode_cases import Filled


class Answer(NamedTuple):
    """out [B,H,Dv], lse [B,H], float64."""

    out: Tensor
    lse: Tensor


def oracle(
    filled: Filled,
    *,
    null_count: int = 1,
    interleaved_heads: bool = False,
    residual: bool = True,
    extra: int = 0,
) -> Answer:
    """The right answer; other arguments than the defaults give a known wrong one.

    null_count: how often the null token counts. interleaved_heads: head h reads KV head h % G. residual:
    False reads the newest tokens as stored. extra: tokens past (or, negative, short of) each length.
    """
    rows = [
        _row(filled, row, null_count, interleaved_heads, residual, extra) for row in range(filled.cache.batch)
    ]
    return Answer(torch.stack([row.out for row in rows]), torch.stack([row.lse for row in rows]))


def unquantized(filled: Filled) -> Answer:
    """The answer over the tokens as they were before the cache stored them."""
    heads, outs, lses = filled.q_geo.shape[1], [], []
    for row, length in enumerate(filled.cache.lengths):
        k_sem, k_geo, v = (_per_head(x[row, :, :length].double(), heads, False) for x in filled.tokens)
        answer = _softmax(filled, row, k_sem, k_geo, v)
        outs.append(answer.out)
        lses.append(answer.lse)
    return Answer(torch.stack(outs), torch.stack(lses))


def _row(filled: Filled, row: int, null_count: int, interleaved: bool, residual: bool, extra: int) -> Answer:
    cache, heads = filled.cache, filled.q_geo.shape[1]
    length = max(0, min(cache.lengths[row] + extra, cache.length))
    keys = []
    for store, x in zip((cache.k_sem, cache.k_geo, cache.v), filled.tokens, strict=True):
        values = store.stored(0, length)[row].double()  # [G, length, D]
        window = max(0, cache.lengths[row] - cache.residual_len)
        if residual and store.quantized and cache.residual_len:
            values = torch.cat((values[:, :window], x[row, :, window:length].half().double()), dim=1)
        keys.append(_per_head(values, heads, interleaved))
    if filled.null is not None:
        keys = [
            torch.cat((null.expand(-1, null_count, -1), rest), dim=1)
            for null, rest in zip(_null_heads(filled.null, heads, interleaved), keys, strict=True)
        ]
    return _softmax(filled, row, *keys)


def _softmax(filled: Filled, row: int, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> Answer:
    """k_sem [H,S,Ds], k_geo [H,S,Dg], v [H,S,Dv] of one row."""
    scores = torch.einsum("hd,hnd->hn", filled.q_sem[row].double(), k_sem)
    scores = scores + torch.einsum("hd,hnd->hn", filled.q_geo[row].double(), k_geo)
    out = torch.einsum("hn,hnd->hd", torch.softmax(scores, dim=-1), v)
    return Answer(out, torch.logsumexp(scores, dim=-1))


def _per_head(x: Tensor, heads: int, interleaved: bool) -> Tensor:
    """[G, ...] -> [H, ...]: the KV head of every query head."""
    share = heads // len(x)
    return x.repeat(share, *(1 for _ in x.shape[1:])) if interleaved else x.repeat_interleave(share, dim=0)


def _null_heads(null: NullKV, heads: int, interleaved: bool) -> list[Tensor]:
    """k_sem, k_geo and v as [H,1,D]."""
    return [_per_head(t.double(), heads, interleaved)[:, None] for t in (null.k_sem, null.k_geo, null.v)]
