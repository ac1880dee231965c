"""Queries, keys and values of the long-sequence path as one tensor each, of one width:

    query [q_sem | q_geo | 0 | 1 1]           value [v | 0]
    token or null key [k_sem | k_geo | 0]     memory key [k_mem | 0 | log(L)]

The last two channels exist with the "columns" carrier only (attention.long_sequence_masks). Equal widths keep
scaled_dot_product_attention on its fused path. Called by attention.long_sequence.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from dba_core.attention.long_sequence_masks import COLUMNS, columns
from dba_core.contracts import NullKV


@attrs.frozen(kw_only=True)
class Packing:
    """Widths of one head's parts.

    log_mass: what the columns give a memory logit; None without columns. align: the width is a multiple of
    it (FlashAttention wants 8).
    """

    sem: int
    geo: int
    v: int
    log_mass: float | None
    align: int
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """W: the wider of keys, columns included, and values, rounded up."""
        keys = self.sem + self.geo + (0 if self.log_mass is None else COLUMNS)
        return -(-max(keys, self.v) // self.align) * self.align

    def queries(self, q_sem: Tensor, q_geo: Tensor) -> Tensor:
        """[B,H,T,Ds], [B,H,T,Dg] -> [B,H,T,W], a new tensor."""
        ones = None if self.log_mass is None else torch.ones(COLUMNS, device=q_geo.device)
        return self._join(q_sem, q_geo, tail=ones)

    def tokens(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,T,Ds], [B,G,T,Dg], [B,G,T,Dv] -> keys and values [B,G,T,W], new tensors."""
        return self._join(k_sem, k_geo), self._join(v)

    def memory(self, k_mem: Tensor, v_mem: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,N,Ds], [B,G,N,Dv] -> [B,G,N,W] each."""
        tail = None if self.log_mass is None else columns(self.log_mass, k_mem)
        return self._join(k_mem, tail=tail), self._join(v_mem)

    def null(self, null: NullKV) -> tuple[Tensor, Tensor]:
        """The null key and value, [G,W] each."""
        return self._join(null.k_sem, null.k_geo), self._join(null.v)

    def _join(self, *parts: Tensor, tail: Tensor | None = None) -> Tensor:
        """The parts side by side, zeros up to W, the tail in the last channels."""
        lead = parts[0].shape[:-1]
        missing = self.width - sum(part.shape[-1] for part in parts) - (0 if tail is None else len(tail))
        pieces = [*parts, parts[0].new_zeros(()).expand(*lead, missing)]
        if tail is not None:
            pieces.append(tail.expand(*lead, -1))
        return torch.cat([piece.to(self.dtype) for piece in pieces if piece.shape[-1]], dim=-1)
