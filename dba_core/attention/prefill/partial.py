"""Attention over a part of the keys, with the log-sum-exp that lets parts be merged:

    out_p = softmax(s_p) v_p                   lse_p = log sum exp(s_p)
    out   = sum_p e^(lse_p - lse) out_p        lse   = log sum_p e^lse_p

Merging is associative; the neutral element is out = 0 with lse = NOTHING, a finite number so low that its
weight beside any real score is exactly 0 (no -inf - -inf). How a part is computed is up to the device alone:

    cpu            torch's flash kernel (the one behind scaled_dot_product_attention, which hides the lse)
    cuda           torch's memory-efficient kernel; float32 products for parts with a mask, which are small
    anything else  float32 products in blocks of queries

No gradients.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = -1e30
_QUERY_BLOCK = 256


@attrs.frozen(eq=False)
class Partial:
    """out [B,H,T,D], normalized over its own keys; lse [B,H,T], natural; float32 (float64 for float64)."""

    out: Tensor
    lse: Tensor

    def rows(self, start: int, stop: int) -> Partial:
        """Queries start..stop-1, as views."""
        return Partial(self.out[:, :, start:stop], self.lse[:, :, start:stop])

    def absorb(self, other: Partial) -> None:
        """Merge `other` into this one, in place."""
        lse = torch.logaddexp(self.lse, other.lse)  # [B, H, T]
        self.out.mul_((self.lse - lse).exp_().unsqueeze(-1))
        self.out.addcmul_(other.out, (other.lse - lse).exp_().unsqueeze(-1))
        self.lse.copy_(lse)


def nothing(q: Tensor, *, width: int) -> Partial:
    """The neutral element for queries [B,H,T,*] and values of this width."""
    dtype = _state_dtype(q)
    return Partial(
        q.new_zeros(*q.shape[:3], width, dtype=dtype), q.new_full(q.shape[:3], NOTHING, dtype=dtype)
    )


def one_key(q: Tensor, key: Tensor, value: Tensor) -> Partial:
    """The part that is a single key [G,D] with value [G,Dv], seen by all queries [B,H,T,D]."""
    kv_heads, dtype = len(key), _state_dtype(q)
    grouped = torch.unflatten(q.to(dtype), 1, (kv_heads, -1))  # [B, G, H/G, T, D]
    lse = torch.einsum("bgrtd,gd->bgrt", grouped, key.to(dtype)).flatten(1, 2)
    value = value.to(dtype).repeat_interleave(q.shape[1] // kv_heads, dim=0)  # [H, Dv]
    return Partial(value[None, :, None].expand(*q.shape[:3], -1).contiguous(), lse)


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Partial:
    """q [B,H,T,W], k and v [B,G,S,W] of one dtype, T and S at least 1; scores are q.k.

    mask: bool [B or 1,1,T or 1,S], True is seen (a query that sees nothing here has no weight in a merge);
    causal: T = S, query t sees keys 0..t. float32 or float64 on the CPU; on CUDA half precision too.
    """
    device = q.device.type
    if device not in ("cpu", "cuda") or (device == "cuda" and mask is not None):
        return _products(q, k, v, mask, causal)
    batch, n_heads, q_len, width = q.shape
    kv_heads = k.shape[1]
    if kv_heads == n_heads:
        return _kernel(q, k, v, mask, causal)
    if causal or (mask is not None and mask.shape[2] > 1):
        k, v = (t.repeat_interleave(n_heads // kv_heads, dim=1) for t in (k, v))
        return _kernel(q, k, v, mask, causal)
    # Where all queries see the same keys, the query heads of a group are just more queries of one KV head.
    part = _kernel(q.reshape(batch, kv_heads, -1, width), k, v, mask, causal)
    return Partial(part.out.reshape(q.shape), part.lse.reshape(batch, n_heads, q_len))


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Partial:
    """As many heads in k and v as in q. Only the CPU's kernel takes a mask."""
    # The kernels read rows without looking at their stride, and torch.cat keeps that of its inputs.
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if q.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = q.new_zeros(mask.shape).masked_fill_(~mask, NOTHING).expand(len(q), 1, q.shape[2], -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=causal, attn_mask=bias, scale=1.0
        )
        return Partial(out, lse)
    width, q_len = q.shape[-1], q.shape[2]
    q, k, v = (F.pad(t, (0, -width % 8)) for t in (q, k, v))  # the kernel reads 16 bytes at a time
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, compute_log_sumexp=True, is_causal=causal, scale=1.0
    )
    return Partial(out[..., :width].float(), lse[:, :, :q_len])  # its lse is padded to a multiple of 32


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Partial:
    kv_heads, q_len, dtype = k.shape[1], q.shape[2], _state_dtype(q)
    k, v = k.to(dtype).unsqueeze(2), v.to(dtype).unsqueeze(2)  # [B, G, 1, S, W]
    outs, lses = [], []
    for start in range(0, q_len, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, q_len)
        grouped = torch.unflatten(q[:, :, start:stop].to(dtype), 1, (kv_heads, -1))
        scores = grouped @ k.mT  # [B, G, H/G, n, S]
        if causal:
            scores = scores.masked_fill(_future(start, stop, k.shape[-2], q.device), NOTHING)
        if mask is not None:
            rows = mask if mask.shape[2] == 1 else mask[:, :, start:stop]
            scores = scores.masked_fill(~rows.unsqueeze(2), NOTHING)
        lse = torch.logsumexp(scores, dim=-1)  # [B, G, H/G, n]
        outs.append(((scores - lse.unsqueeze(-1)).exp_() @ v).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return Partial(torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _state_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _future(start: int, stop: int, kv_len: int, device: torch.device) -> Tensor:
    """bool [stop-start, kv_len]: key after the query."""
    return torch.arange(kv_len, device=device) > torch.arange(start, stop, device=device).unsqueeze(-1)
