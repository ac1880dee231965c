"""The 2-pass algorithm in plain torch, split by split: what the kernels must give. Run by the tests.

    split p:  m_p = log2(e) max_j s_j    l_p = sum_j 2^(log2(e) s_j - m_p)    acc_p = sum_j 2^(..) v_j
    merge:    M = max(max_p m_p, log2(e) s_null)
              l = sum_p l_p 2^(m_p - M) + 2^(log2(e) s_null - M), and acc in the same way

Splits 0..S-2 share a row's whole blocks, split S-1 has the rest and the residual window.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dba_core.contracts import DecodeOutput, KVLayer, KVTensor, NullKV

LOG2_E = math.log2(math.e)
LOWEST = -1e30


def split_ranges(length: int, residual: int, *, splits: int, block: int) -> list[tuple[int, int]]:
    """The tokens of each split of a row, as start and stop; the last one is at the end."""
    full = max(0, length - residual) // block * block
    if splits == 1:
        return [(0, length)]
    size = -(-(full // block) // (splits - 1)) * block
    whole = [(min(p * size, full), min((p + 1) * size, full)) for p in range(splits - 1)]
    return [*whole, (full, length)]


def states(q_sem: Tensor, q_geo: Tensor, cache: KVLayer, *, splits: int, block: int) -> Tensor:
    """acc [Dv], m and l of every split: [B,H,splits,Dv+2] float64."""
    batch, heads, _ = q_geo.shape
    out = torch.zeros(batch, heads, splits, cache.v.head_dim + 2, dtype=torch.float64)
    out[..., -2] = LOWEST
    for row, length in enumerate(cache.lengths):
        k_sem, k_geo, v = (
            _as_read(store, cache, row, heads) for store in (cache.k_sem, cache.k_geo, cache.v)
        )
        scores = torch.einsum("hd,hnd->hn", q_sem[row].double(), k_sem)
        scores = (scores + torch.einsum("hd,hnd->hn", q_geo[row].double(), k_geo)) * LOG2_E
        for p, (start, stop) in enumerate(
            split_ranges(length, cache.residual_len, splits=splits, block=block)
        ):
            if start < stop:
                out[row, :, p] = _state(scores[:, start:stop], v[:, start:stop])
    return out


def merge(state: Tensor, q_sem: Tensor, q_geo: Tensor, null: NullKV | None) -> DecodeOutput:
    """The output [B,H,Dv] and lse [B,H], float64, of states [B,H,S,Dv+2] and the null token."""
    if null is not None:
        heads = q_geo.shape[1]
        k_sem, k_geo, v = (_per_head(x.double(), heads) for x in (null.k_sem, null.k_geo, null.v))
        score = (q_sem.double() * k_sem).sum(-1) + (q_geo.double() * k_geo).sum(-1)  # [B, H]
        one = torch.ones_like(score)
        virtual = torch.cat([v.expand(*score.shape, -1), (score * LOG2_E)[..., None], one[..., None]], dim=-1)
        state = torch.cat([state, virtual[:, :, None]], dim=2)
    acc, m, mass = state[..., :-2], state[..., -2], state[..., -1]  # [B, H, S, Dv], [B, H, S] twice
    most = m.amax(dim=-1, keepdim=True)
    weight = torch.where(mass > 0, torch.exp2(m - most), 0.0)
    total = (weight * mass).sum(-1)
    seen = total > 0
    out = (weight[..., None] * acc).sum(2) / torch.where(seen, total, 1.0)[..., None]
    lse = torch.where(seen, (most[..., 0] + total.log2()) / LOG2_E, -torch.inf)
    return DecodeOutput(out=out, lse=lse)


def _state(scores: Tensor, v: Tensor) -> Tensor:
    """acc, m, l of some tokens: scores [H,n] in units of log 2, v [H,n,Dv] -> [H,Dv+2]."""
    m = scores.amax(dim=-1, keepdim=True)
    p = torch.exp2(scores - m)
    acc = torch.einsum("hn,hnd->hd", p, v)
    return torch.cat([acc, m, p.sum(-1, keepdim=True)], dim=-1)


def _as_read(store: KVTensor, cache: KVLayer, row: int, heads: int) -> Tensor:
    """Row `row` as its newest query reads it: [H,length,D] float64."""
    values = store.read(0, cache.lengths[row], row=row)[0].double()
    return _per_head(values, heads)


def _per_head(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // len(x), dim=0)
