"""The dense oracle of the attention: every score in one float64 matrix, nothing fused, nothing in blocks.

    score = q_sem . k_sem + q_geo . k_geo        (queries already scaled)
    out   = softmax(score over the visible keys) v

For tests and for reading. It shares no code with what it checks, and costs T x S memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dba_core.contracts import NullKV


def reference_attention(
    q_sem: Tensor,
    q_geo: Tensor,
    k_sem: Tensor,
    k_geo: Tensor,
    v: Tensor,
    *,
    null: NullKV | None = None,
    causal: bool = True,
    q_offset: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Attention of T query tokens over S key tokens: float64 [B,H,T,Dv], differentiable.

    q_sem [B,H,T,Ds], q_geo [B,H,T,Dg]: scaled, rotated, gated. k_sem [B,G,S,Ds], k_geo [B,G,S,Dg],
    v [B,G,S,Dv]; query head h reads KV head h // (H/G). A width Ds of 0 is an absent path.
    lengths: row b has the first lengths[b] keys only. q_offset: the position of query 0 (one number, or one
    per row); by default the queries are the newest tokens of their row (bottom-right alignment).
    mask: bool, broadcastable to [B,H,T,S], True may be seen; combined with causality and lengths. The null
    key is visible to every query. A query that sees no key gives zeros.
    """
    batch, n_heads, q_len, _ = q_geo.shape
    kv_len, device = k_geo.shape[2], q_geo.device
    held = torch.tensor([kv_len] * batch if lengths is None else list(lengths), device=device)  # [B]
    if q_offset is None:
        offset = held - q_len
    else:
        given = [q_offset] * batch if isinstance(q_offset, int) else list(q_offset)
        offset = torch.tensor(given, device=device)
    query_at = offset[:, None, None, None] + torch.arange(q_len, device=device)[:, None]  # [B, 1, T, 1]
    key_at = torch.arange(kv_len, device=device)  # [S]
    visible = (key_at < held[:, None, None, None]).expand(batch, n_heads, q_len, kv_len)
    if causal:
        visible = visible & (key_at <= query_at)
    if mask is not None:
        visible = visible & mask

    keys = [t.double() for t in (k_sem, k_geo, v)]
    if null is not None:
        rows = [t.double()[None, :, None].expand(batch, -1, -1, -1) for t in (null.k_sem, null.k_geo, null.v)]
        keys = [torch.cat(pair, dim=2) for pair in zip(rows, keys, strict=True)]  # [B, G, 1+S, *]
        visible = torch.cat([visible.new_ones(batch, n_heads, q_len, 1), visible], dim=-1)
    of_sem, of_geo, values = (t.repeat_interleave(n_heads // t.shape[1], dim=1) for t in keys)  # [B, H, S, *]
    scores = torch.einsum("bhtd,bhsd->bhts", q_sem.double(), of_sem)
    scores = scores + torch.einsum("bhtd,bhsd->bhts", q_geo.double(), of_geo)

    sees = visible.any(dim=-1, keepdim=True)  # [B, H, T, 1]
    weights = torch.softmax(scores.masked_fill(sees & ~visible, -torch.inf), dim=-1)
    return torch.where(sees, weights, 0.0) @ values
