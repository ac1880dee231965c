"""Queries, keys and values as one tensor each, of one width W, as scaled_dot_product_attention wants them:

    query [q_sem | q_geo | 0 | 1 1]           value [v | 0]
    token or null key [k_sem | k_geo | 0]     memory key [k_mem | 0 | log(L)]

The last two channels exist only where they carry the weight of memory tokens (attention.long_sequence). The
null token is key number zero of any of these, visible to every query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dba_core.contracts import NullKV

#: Channels that carry log(L): its value rounded, and what that left out.
COLUMNS = 2


class PackedHeads(NamedTuple):
    """Queries [B,T,H,W], keys and values [B,T,G,W], the rest of each head zero."""

    q: Tensor
    k: Tensor
    v: Tensor


class PackedNull(NamedTuple):
    """The null key and value, [G,W] each."""

    k: Tensor
    v: Tensor


class Packing(NamedTuple):
    """width: W. log_mass: what the columns give a memory logit; None without columns. dtype: of what is made,
    but for the null token. A tuple for torch.compile's sake.
    """

    width: int
    dtype: torch.dtype
    log_mass: float | None = None

    @classmethod
    def of(
        cls, *parts: Tensor, v: Tensor, dtype: torch.dtype, log_mass: float | None = None, align: int = 1
    ) -> Packing:
        """parts: the queries' or the keys'. W: their widths, columns included, or the values' where that is
        more, rounded up to a multiple of `align`.
        """
        keys = sum(part.shape[-1] for part in parts) + (0 if log_mass is None else COLUMNS)
        width = -(-max(keys, v.shape[-1]) // align) * align
        return cls(width=width, dtype=dtype, log_mass=log_mass)

    def queries(self, q_sem: Tensor, q_geo: Tensor) -> Tensor:
        """[B,H,T,Ds], [B,H,T,Dg] -> [B,H,T,W], a new tensor."""
        ones = None if self.log_mass is None else torch.ones(COLUMNS, device=q_geo.device)
        return side_by_side(q_sem, q_geo, width=self.width, dtype=self.dtype, tail=ones)

    def tokens(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,T,Ds], [B,G,T,Dg], [B,G,T,Dv] -> keys and values [B,G,T,W], new tensors."""
        return (
            side_by_side(k_sem, k_geo, width=self.width, dtype=self.dtype),
            side_by_side(v, width=self.width, dtype=self.dtype),
        )

    def heads(self, q_sem: Tensor, q_geo: Tensor, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> PackedHeads:
        """Queries, keys and values as above, [B,H,T,*] and [B,G,T,*] -> [B,T,H,W] and [B,T,G,W]."""
        q, (k, v) = self.queries(q_sem, q_geo), self.tokens(k_sem, k_geo, v)
        return PackedHeads(*(each.transpose(1, 2) for each in (q, k, v)))

    def memory(self, k_mem: Tensor, v_mem: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,N,Ds], [B,G,N,Dv] -> [B,G,N,W] each."""
        tail = None if self.log_mass is None else columns(self.log_mass, k_mem)
        return (
            side_by_side(k_mem, width=self.width, dtype=self.dtype, tail=tail),
            side_by_side(v_mem, width=self.width, dtype=self.dtype),
        )

    def null(self, null: NullKV) -> PackedNull:
        """The null key and value in the dtype that they have."""
        return PackedNull(
            side_by_side(null.k_sem, null.k_geo, width=self.width), side_by_side(null.v, width=self.width)
        )


def side_by_side(
    *parts: Tensor, width: int, dtype: torch.dtype | None = None, tail: Tensor | None = None
) -> Tensor:
    """The parts [...,D_i] in this order, zeros up to `width`, the tail [n] in the last channels: a new tensor
    [...,width]. dtype: None is that of the parts.
    """
    lead = parts[0].shape[:-1]
    missing = width - sum(part.shape[-1] for part in parts) - (0 if tail is None else len(tail))
    pieces = [*parts, parts[0].new_zeros(()).expand(*lead, missing)]
    if tail is not None:
        pieces.append(tail.expand(*lead, -1))
    pieces = [piece for piece in pieces if piece.shape[-1]]
    return torch.cat(pieces if dtype is None else [piece.to(dtype) for piece in pieces], dim=-1)


def null_first(null: Tensor, tokens: Tensor, *, dim: int) -> Tensor:
    """null [G,W] before the tokens: [B,T,G,W] along dim=1, [B,G,T,W] along dim=2."""
    rows = null.to(tokens.dtype).unsqueeze(dim - 1)  # [1, G, W] or [G, 1, W]
    return torch.cat([rows.expand(len(tokens), -1, -1, -1), tokens], dim=dim)


def columns(log_mass: float, like: Tensor) -> Tensor:
    """[2]: log(L) in `like`'s dtype and what that rounding left out."""
    high = torch.tensor(log_mass, dtype=torch.float64, device="cpu").to(like.dtype)
    low = (log_mass - high.double()).to(like.dtype)
    return torch.stack([high, low]).to(like.device)
