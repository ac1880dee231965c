"""A whole sequence without a cache, fused: one product makes all heads, one causal attention reads them.

    y = x [W_q | W_k | W_v]^T,   (y_2i + j y_2i+1) *= cos + j sin   on the geometric channels of q and k
    out[t] = softmax(q_t . [k_null, k_0 .. k_t]) [v_null, v_0 .. v_t]

The product saves a third of the time at small widths. It serves where every projection is a plain matrix, so
that calling it is nothing but that product; where one is not, the modules are called (`project`). Channels 2i
and 2i+1 of a head are a complex number turned by the angle of (position, i); the weights are reordered so
that these are RoPE's half-split pairs. The complex product runs in place on y, which nobody else has seen:
RoPE as operations of its own costs a sixth of a small attention layer's step, this less than a tenth.

The null key is key number zero. Together with one zero query in front the problem is square again, so that
`is_causal=True` (which aligns top-left) is exactly right and no mask exists; the first output row is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.attention.inputs import autocast_enabled, compute_dtype
from dba_core.attention.projections import (
    HeadProjections,
    PackedHeads,
    Packing,
    null_first,
    share_heads,
    side_by_side,
)
from dba_core.contracts import AttentionShape, NullKV

_COMPLEX_PARTS = (torch.float32, torch.float64)
_ThreeHeads = tuple[Tensor, Tensor, Tensor]


def fused_attention(
    heads: PackedHeads,
    *,
    null: tuple[Tensor, Tensor] | None = None,
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


def _masked(heads: PackedHeads, null: tuple[Tensor, Tensor] | None, mask: Tensor, dropout_p: float) -> Tensor:
    q_len = heads.q.shape[1]
    visible = mask & torch.ones(q_len, q_len, dtype=torch.bool, device=mask.device).tril()
    if null is not None:
        k, v = _with_null(heads, null)
        return _sdpa(heads.q, k, v, mask=F.pad(visible, (1, 0), value=True), dropout_p=dropout_p)
    sees = visible.any(dim=-1, keepdim=True)  # [B or 1, H or 1, T, 1]
    out = _sdpa(heads.q, heads.k, heads.v, mask=visible | ~sees, dropout_p=dropout_p)
    return torch.where(sees.transpose(1, 2), out, 0.0)


def _with_null(heads: PackedHeads, null: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values [B,1+T,G,W]."""
    return null_first(null[0], heads.k, dim=1), null_first(null[1], heads.v, dim=1)


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


def packed_heads(
    layer: HeadProjections, x: Tensor, *, gate: Tensor | None, null: NullKV | None
) -> tuple[PackedHeads, tuple[Tensor, Tensor] | None]:
    """The heads of the tokens at positions 0.., of one width, and the null token laid out as they are."""
    cos, sin = layer.rope.span(0, x.shape[1], x)
    if layer.projection is None and layer.plain_weights() is not None:
        packed = project_packed(x, layer, cos, sin, gate=gate)
        return packed, None if null is None else pack_null(null, layer.shape)
    heads = layer.project(x, cos, sin).gated(gate).shared()
    packing = Packing.of(heads.q_sem, heads.q_geo, v=heads.v, dtype=compute_dtype(heads.v))
    return packing.heads(*heads), None if null is None else packing.null(null)


def packed_width(shape: AttentionShape) -> int:
    """W: the wider of keys and values (scaled_dot_product_attention wants one width), rounded up to even."""
    width = max(shape.sem_head_dim + shape.geo_head_dim, shape.v_head_dim)
    return width + width % 2


def project_packed(
    x: Tensor, layer: HeadProjections, cos: Tensor, sin: Tensor, *, gate: Tensor | None = None
) -> PackedHeads:
    """x [B,T,d_model], cos and sin [T, G or 1, Dg/2], gate [B,H,T,1] -> heads of width W.

    A query or key head is [geometric, i beside i + Dg/2 | semantic | zeros], a value head [v | zeros].
    """
    shape = layer.shape
    n_heads, kv_heads = shape.n_heads, shape.n_kv_heads
    if cos.shape[-2] > 1:
        cos, sin = (torch.cat([t.repeat_interleave(n_heads // kv_heads, -2), t], -2) for t in (cos, sin))
    sizes = n_heads, kv_heads, kv_heads
    q, k, v = rotated_projection(x, _packed_weight(layer), cos, sin, sizes=sizes, width=packed_width(shape))
    if gate is not None:
        q = q * _gate_factor(gate, shape).to(q.dtype)
    if layer.sem_offset is not None:
        k = k - _packed_offset(layer.sem_offset, shape).to(k.dtype)
    return PackedHeads(q=q, k=k, v=v)


def pack_null(null: NullKV, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """The null key and value as `project_packed` orders channels."""
    width = packed_width(shape)
    geo = torch.unflatten(null.k_geo, -1, (2, -1)).transpose(-1, -2).flatten(-2)  # [G, Dg]
    return side_by_side(geo, null.k_sem, width=width), side_by_side(null.v, width=width)


def _packed_weight(layer: HeadProjections) -> Tensor:
    """[(H+2G)*W, d_model]: the weights of all heads, scaled, in the packed layout."""
    width, kv_heads = packed_width(layer.shape), layer.shape.n_kv_heads
    q_geo, k_geo, q_sem, k_sem, v = layer.matrices()  # [heads, D, d_model]
    geo = torch.unflatten(torch.cat([q_geo, k_geo]), 1, (2, -1)).transpose(1, 2).flatten(1, 2)
    sem = torch.cat([q_sem, share_heads(k_sem[None], kv_heads)[0]])
    keys = torch.cat([geo, sem], dim=1)  # [H+G, Dg+Ds, d_model]
    values = share_heads(v[None], kv_heads)[0]
    padded = [F.pad(rows, (0, 0, 0, width - rows.shape[1])) for rows in (keys, values)]
    return torch.cat(padded).flatten(0, 1)


def _packed_offset(offset: Tensor, shape: AttentionShape) -> Tensor:
    """[Gs, Ds] -> [G, W], zero but for the semantic channels."""
    shared = share_heads(offset[None, :, None], shape.n_kv_heads)[0, :, 0]  # [G, Ds]
    after = packed_width(shape) - shape.geo_head_dim - shape.sem_head_dim
    return F.pad(shared, (shape.geo_head_dim, after))


def _gate_factor(gate: Tensor, shape: AttentionShape) -> Tensor:
    """gate [B,H,T,1] -> [B,T,H,W]: 2(1-g) on the geometric channels, 2g on the semantic ones."""
    double = 2.0 * gate.transpose(1, 2)  # [B, T, H, 1]
    geo = (2.0 - double).expand(-1, -1, -1, shape.geo_head_dim)
    return torch.cat([geo, double.expand(-1, -1, -1, packed_width(shape) - shape.geo_head_dim)], dim=-1)


def rotated_projection(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, sizes: tuple[int, int, int], width: int
) -> _ThreeHeads:
    """x [B,T,d_model], weight [N*W,d_model] -> q [B,T,H,W], k [B,T,G,W], v [B,T,G,W].

    sizes: (H, G, G), N their sum; width: W, even. The first Dg channels of every query and key head are
    rotated by cos and sin [T, H+G or 1, Dg/2].
    """
    heads = torch.unflatten(F.linear(x, weight), -1, (-1, width))  # [B, T, N, W]
    plain = torch.compiler.is_compiling() or autocast_enabled(x.device)
    if plain or x.dtype not in _COMPLEX_PARTS:
        return _out_of_place(heads, cos, sin, sizes)
    pairs = torch.view_as_complex(torch.unflatten(heads, -1, (-1, 2)))  # [B, T, N, W/2]
    pairs[:, :, : sizes[0] + sizes[1], : cos.shape[-1]].mul_(torch.complex(cos, sin))
    q, k, v = torch.split(heads, list(sizes), dim=2)
    return q, k, v


def _out_of_place(heads: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int]) -> _ThreeHeads:
    """The same of heads [B,T,N,W] in real arithmetic: for compiled code and half precision."""
    turned, v = torch.split(heads, [sizes[0] + sizes[1], sizes[2]], dim=2)
    rotary = 2 * cos.shape[-1]
    even, odd = torch.unflatten(turned[..., :rotary], -1, (-1, 2)).unbind(-1)  # [B, T, H+G, Dg/2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    turned = torch.cat([pairs.to(heads.dtype), turned[..., rotary:]], dim=-1)
    q, k = torch.split(turned, list(sizes[:2]), dim=2)
    return q, k, v


def taking_part(x: Tensor, module: nn.Module) -> Tensor:
    """x; every trainable parameter of the module gets a gradient of zeros from it instead of none.

    DistributedDataParallel waits for a gradient of every parameter, and fails where a pass does not read one.
    """
    if not torch.is_grad_enabled():
        return x
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    apply = cast("Callable[..., Tensor]", _TakingPart.apply)
    return apply(x, *parameters) if parameters else x


class _TakingPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
