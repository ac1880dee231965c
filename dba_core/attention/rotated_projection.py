"""One product for queries, keys and values, and RoPE on its result, for training:

    y = x W^T,   (y_2i + j y_2i+1) *= cos + j sin   on the geometric channels of the query and key heads

Channels 2i and 2i+1 of a head are a complex number turned by the angle of (position, i); the weights are
reordered so that these are RoPE's half-split pairs (attention.projections). The complex product runs in
place, on y forward and on its gradient backward, both of which nobody else has seen: RoPE as operations of
its own costs a sixth of a small attention layer's step, this a twentieth. Called by attention.projections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.autocast import autocast_enabled

_COMPLEX_PARTS = (torch.float32, torch.float64)
_ThreeHeads = tuple[Tensor, Tensor, Tensor]


def rotated_projection(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, sizes: tuple[int, int, int], width: int
) -> _ThreeHeads:
    """x [B,T,d_model], weight [N*W,d_model] -> q [B,T,H,W], k [B,T,G,W], v [B,T,G,W].

    sizes: (H, G, G), N their sum; width: W, even. The first Dg channels of every query and key head are
    rotated by cos and sin [T, H+G or 1, Dg/2].
    """
    plain = torch.compiler.is_compiling() or autocast_enabled(x.device)
    if plain or x.dtype not in _COMPLEX_PARTS:
        return _out_of_place(F.linear(x, weight), cos, sin, sizes, width)
    apply = cast("Callable[..., _ThreeHeads]", _RotatedProjection.apply)
    return apply(x, weight, cos, sin, sizes, width)


class _RotatedProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        sizes: tuple[int, int, int],
        width: int,
    ) -> _ThreeHeads:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.sizes, ctx.width = sizes, width
        heads = torch.unflatten(F.linear(x, weight), -1, (-1, width))  # [B, T, N, W]
        _turn(heads, torch.complex(cos, sin), sizes)
        q, k, v = torch.split(heads, list(sizes), dim=2)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        x, weight, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            turned = _out_of_place(torch.cat(grads, dim=2).flatten(2), cos, -sin, ctx.sizes, ctx.width)
            grad = torch.cat(turned, dim=2)
        else:
            grad = torch.cat(grads, dim=2)  # [B, T, N, W]
            _turn(grad, torch.complex(cos, -sin), ctx.sizes)
        rows = grad.flatten(2).flatten(0, 1)  # [B*T, N*W]
        x_grad = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        weight_grad = rows.mT @ x.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, None, None, None, None


def _turn(heads: Tensor, angle: Tensor, sizes: tuple[int, int, int]) -> None:
    """Multiply the rotated channels of heads [B,T,N,W] by angle [T, H+G or 1, Dg/2], in place."""
    pairs = torch.view_as_complex(torch.unflatten(heads, -1, (-1, 2)))  # [B, T, N, W/2]
    pairs[:, :, : sizes[0] + sizes[1], : angle.shape[-1]].mul_(angle)


def _out_of_place(
    y: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int], width: int
) -> _ThreeHeads:
    """The same on y [B,T,N*W] in real arithmetic: for compiled code, half precision, second derivatives."""
    turned, v = torch.split(torch.unflatten(y, -1, (-1, width)), [sizes[0] + sizes[1], sizes[2]], dim=2)
    rotary = 2 * cos.shape[-1]
    even, odd = torch.unflatten(turned[..., :rotary], -1, (-1, 2)).unbind(-1)  # [B, T, H+G, Dg/2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    turned = torch.cat([pairs.to(y.dtype), turned[..., rotary:]], dim=-1)
    q, k = torch.split(turned, list(sizes[:2]), dim=2)
    return q, k, v
