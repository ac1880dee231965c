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


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [...,D] by angles whose cos and sin [...,D/2] broadcast against its halves; x's dtype."""
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)


def per_head(table: Tensor, *, n_heads: int) -> Tensor:
    """[(B,) T, G or 1, D/2] -> [(B,) 1 or n_heads, T, D/2], as it broadcasts against [B,H,T,D/2]."""
    kv_heads = table.shape[-2]
    if kv_heads > 1:
        table = table.repeat_interleave(n_heads // kv_heads, dim=-2)
    return table.transpose(-3, -2)


def rotate_both(q_geo: Tensor, k_geo: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q_geo [B,H,T,Dg] and k_geo [B,G,T,Dg] at the tokens' positions, in the dtype of k_geo."""
    n_heads, (_, kv_heads, q_len, _) = q_geo.shape[1], k_geo.shape
    of_q = [per_head(table, n_heads=n_heads) for table in (cos, sin)]  # [(B,) 1 or H, T, Dg/2]
    if q_len == 1 and cos.shape[-2] == 1 and q_geo.dtype == k_geo.dtype:
        # of one token, calling operations costs more than they do: half as many
        both = rotate_halves(torch.cat([q_geo, k_geo], dim=1), *of_q)  # [B, H+G, 1, Dg]
        return both[:, :n_heads], both[:, n_heads:]
    of_k = [per_head(table, n_heads=kv_heads) for table in (cos, sin)]
    return rotate_halves(q_geo, *of_q).to(k_geo.dtype), rotate_halves(k_geo, *of_k)


def _table_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class RopeTable:
    """cos and sin of the positions used so far, grown in powers of two; in no state_dict.

    frequencies: [D/2], or [G,D/2] for a table per KV head.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self.frequencies = (frequencies if frequencies.dim() == 2 else frequencies[None]).double().cpu()
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, length: int, like: Tensor) -> Tensor:
        """[2, n, G or 1, D/2], n >= length: cos and sin on `like`'s device, float32 (float64 for float64)."""
        key = (like.device, _table_dtype(like))
        table = self._tables.get(key)
        if table is None or table.shape[1] < length:
            table = self._make(length, *key)
            self._tables[key] = table
        return table

    def at(self, positions: Tensor, longest: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at positions [T] or [B,T], all of them < longest: each [(B,) T, G or 1, D/2]."""
        cos, sin = self(longest, like)
        return cos[positions], sin[positions]

    def span(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start..stop-1: each [stop-start, G or 1, D/2], views."""
        cos, sin = self(stop, like)[:, start:stop]
        return cos, sin

    def _make(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        rows = 1 << max(6, (length - 1).bit_length())
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # a table made while sampling must serve training too
            angles = torch.arange(rows, dtype=torch.float64, device="cpu")[:, None, None] * self.frequencies
            return torch.stack([angles.cos(), angles.sin()]).to(dtype).to(device)  # not all have float64


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
