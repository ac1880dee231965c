"""Causal attention of a sequence through scaled_dot_product_attention: training, prefill without a cache.

    out[t] = softmax(q_t . [k_null, k_0 .. k_t]) [v_null, v_0 .. v_t]

The null key is key number zero. Together with one zero query in front the problem is square again, so that
`is_causal=True` (which aligns top-left) is exactly right and no mask exists; the first output row is dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.packing import PackedHeads, PackedNull, null_first


def fused_attention(
    heads: PackedHeads,
    *,
    null: PackedNull | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """heads: q [B,T,H,W], k and v [B,T,G,W]; null: its key and value [G,W] each -> [B,T,H,W].

    mask: bool [B or 1,H or 1,T or 1,T or 1], True may be seen; causality holds in any case, and the null key
    is always visible. A query that sees nothing gives zeros. Only with a mask is there a T x T mask.
    """
    if mask is not None:
        return _masked(heads, null, mask, dropout_p)
    if null is None:
        return _sdpa(heads.q, heads.k, heads.v, dropout_p=dropout_p)
    q = F.pad(heads.q, (0, 0, 0, 0, 1, 0))  # [B, 1+T, H, W]
    return _sdpa(q, *_with_null(heads, null), dropout_p=dropout_p)[:, 1:]


def _masked(heads: PackedHeads, null: PackedNull | None, mask: Tensor, dropout_p: float) -> Tensor:
    q_len = heads.q.shape[1]
    visible = mask & torch.ones(q_len, q_len, dtype=torch.bool, device=mask.device).tril()
    if null is not None:
        k, v = _with_null(heads, null)
        return _sdpa(heads.q, k, v, mask=F.pad(visible, (1, 0), value=True), dropout_p=dropout_p)
    sees = visible.any(dim=-1, keepdim=True)  # [B or 1, H or 1, T, 1]
    out = _sdpa(heads.q, heads.k, heads.v, mask=visible | ~sees, dropout_p=dropout_p)
    return torch.where(sees.transpose(1, 2), out, 0.0)


def _with_null(heads: PackedHeads, null: PackedNull) -> tuple[Tensor, Tensor]:
    """Keys and values [B,1+T,G,W]."""
    return null_first(null.k, heads.k, dim=1), null_first(null.v, heads.v, dim=1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout_p: float) -> Tensor:
    """[B,T,H,W], [B,S,G,W] -> [B,T,H,W]; causal unless there is a mask, which then says everything."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout_p,
        scale=1.0,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
