"""RoPE inside the packed training tensor: channels 2i and 2i+1 of a head are the real and imaginary part of a
number that is turned by the angle of (position, i):

    (x_2i + j x_2i+1) * (cos + j sin)

The weights are reordered so that these pairs are RoPE's half-split pairs (attention.projections). One complex
product in place costs a third of the four products of the half-split form, forward and backward; this is most
of what a rotated attention layer costs beside an unrotated one. Called by attention.projections.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotate_pairs(y: Tensor, cos: Tensor, sin: Tensor, *, n_heads: int) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of the first n_heads heads of y [B,T,N,W], W even.

    cos, sin [T, n_heads or 1, Dg/2]. y is overwritten where that is the fast way: use the result only.
    """
    if torch.compiler.is_compiling() or y.dtype not in (torch.float32, torch.float64):
        return _rotate_out_of_place(y, cos, sin, n_heads)
    rotated: Tensor = _RotatePairs.apply(y, cos, sin, n_heads)  # type: ignore[no-untyped-call]
    return rotated


class _RotatePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.n_heads = n_heads
        ctx.mark_dirty(y)
        pairs = torch.view_as_complex(torch.unflatten(y, -1, (-1, 2)))  # [B, T, N, W/2]
        pairs[:, :, :n_heads, : cos.shape[-1]].mul_(torch.complex(cos, sin))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grads[0].contiguous()
        if torch.is_grad_enabled():  # a second derivative is wanted
            return _rotate_out_of_place(grad, cos, -sin, ctx.n_heads), None, None, None
        back = torch.complex(cos, -sin)
        n_heads, half = ctx.n_heads, cos.shape[-1]
        result = torch.empty_like(grad)
        given, turned = (torch.view_as_complex(torch.unflatten(t, -1, (-1, 2))) for t in (grad, result))
        torch.mul(given[:, :, :n_heads, :half], back, out=turned[:, :, :n_heads, :half])
        result[:, :, :n_heads, 2 * half :] = grad[:, :, :n_heads, 2 * half :]
        result[:, :, n_heads:] = grad[:, :, n_heads:]
        return result, None, None, None


def _rotate_out_of_place(y: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> Tensor:
    """The same in real arithmetic, for compiled code, half precision and second derivatives."""
    width = 2 * cos.shape[-1]
    even, odd = torch.unflatten(y[:, :, :n_heads, :width], -1, (-1, 2)).unbind(-1)  # [B, T, n_heads, Dg/2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(y.dtype)
    heads = torch.cat([turned, y[:, :, :n_heads, width:]], dim=-1)
    return torch.cat([heads, y[:, :, n_heads:]], dim=2)
