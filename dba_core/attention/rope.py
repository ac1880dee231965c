"""Rotary position embedding on the geometric path (Su et al. 2021), half-split convention of Llama:

    (a, b) = halves of x;   x' = (a cos - b sin, b cos + a sin),   angle[p, i] = p * theta^(-2i/D)

Angles are taken in float64 and rounded once, so that position 100,000 is as exact as position 1. A table of
frequencies may differ by KV head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """The geometric series theta^(-2i/D), radians per token: float64 [D/2]. head_dim is even."""
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is odd; RoPE rotates pairs of channels, so give an even width")
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,N,T,D] turned by the angles of cos and sin [(B,) T, G or 1, D/2], G dividing N; in x's dtype."""
    cos, sin = (_per_head(table, n_heads=x.shape[1]) for table in (cos, sin))  # [(B,) 1 or N, T, D/2]
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)


def _per_head(table: Tensor, *, n_heads: int) -> Tensor:
    kv_heads = table.shape[-2]
    if kv_heads > 1:
        table = table.repeat_interleave(n_heads // kv_heads, dim=-2)
    return table.transpose(-3, -2)


class RopeTable:
    """cos and sin of the positions used so far, grown in powers of two; in no state_dict.

    frequencies: [D/2], or [G,D/2] for a table per KV head.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self.frequencies = (frequencies if frequencies.dim() == 2 else frequencies[None]).double().cpu()
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, positions: Tensor, longest: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at positions [T] or [B,T], all of them < longest: each [(B,) T, G or 1, D/2], on
        `like`'s device, float32 (float64 for float64).
        """
        cos, sin = self._first(longest, like)
        return cos[positions], sin[positions]

    def span(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The same at positions start..stop-1: each [stop-start, G or 1, D/2], views."""
        cos, sin = self._first(stop, like)
        return cos.narrow(0, start, stop - start), sin.narrow(0, start, stop - start)

    def _first(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of at least `length` positions."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        table = self._tables.get((like.device, dtype))
        if table is None or table[0].shape[0] < length:
            rows = torch.arange(1 << max(6, (length - 1).bit_length()), dtype=torch.float64, device="cpu")
            # A table made while sampling must serve training too.
            with torch.inference_mode(False), torch.no_grad():
                angles = rows[:, None, None] * self.frequencies
                cos, sin = torch.stack([angles.cos(), angles.sin()]).to(dtype).to(like.device)
            table = self._tables[like.device, dtype] = cos, sin
        return table


class RopeFrequencies(nn.Module):
    """A table of frequencies that belongs to a layer's weights: float64 [G,D/2], on the CPU.

    It stays there, and in float64, wherever the layer moves: angles of far positions need it.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies.double().cpu().contiguous())
        self._tables: tuple[int, RopeTable] | None = None

    @property
    def table(self) -> RopeTable:
        """The angles of the frequencies as they are now."""
        version = self.frequencies._version
        if self._tables is None or self._tables[0] != version:
            self._tables = version, RopeTable(self.frequencies.clone())
        return self._tables[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RopeFrequencies:
        """What `to`, `half` and `cuda` do to a module: nothing, here."""
        return self


@functools.lru_cache(maxsize=16)
def shared_rope_table(head_dim: int, theta: float) -> RopeTable:
    """The table of the usual frequencies; layers of the same width and base share it."""
    return RopeTable(rope_frequencies(head_dim, theta))
