"""Queries, keys and values of the long-sequence path as one tensor each, of one width, tokens before heads:

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
from dba_core.attention.projections import PackedHeads
from dba_core.contracts import NullKV


@attrs.frozen(kw_only=True)
class Packing:
    """Widths of one head's parts. log_mass: what the columns give a memory logit; None without columns."""

    sem: int
    geo: int
    v: int
    log_mass: float | None
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """W: the wider of keys and values; with columns a multiple of 8, which FlashAttention wants."""
        if self.log_mass is None:
            return max(self.sem + self.geo, self.v)
        return -(-max(self.sem + self.geo + COLUMNS, self.v) // 8) * 8

    def heads(self, q_sem: Tensor, q_geo: Tensor, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> PackedHeads:
        """[B,H,T,Ds], [B,H,T,Dg], [B,G,T,*] -> q [B,T,H,W], k and v [B,T,G,W]."""
        q, k = (self._tokens_first(*parts) for parts in ((q_sem, q_geo), (k_sem, k_geo)))
        ones = None if self.log_mass is None else torch.ones(COLUMNS, device=q[0].device)
        return PackedHeads(
            q=self._join(*q, tail=ones), k=self._join(*k), v=self._join(*self._tokens_first(v))
        )

    def memory(self, k_mem: Tensor, v_mem: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,N,Ds], [B,G,N,Dv] -> [B,N,G,W] each."""
        tail = None if self.log_mass is None else columns(self.log_mass, k_mem)
        k, v = self._tokens_first(k_mem, v_mem)
        return self._join(k, tail=tail), self._join(v)

    def null(self, null: NullKV) -> tuple[Tensor, Tensor]:
        """The null key and value, [G,W] each."""
        return self._join(null.k_sem, null.k_geo), self._join(null.v)

    def _tokens_first(self, *parts: Tensor) -> list[Tensor]:
        return [part.transpose(1, 2) for part in parts]

    def _join(self, *parts: Tensor, tail: Tensor | None = None) -> Tensor:
        """The parts side by side, zeros up to W, the tail in the last channels."""
        pieces = [part for part in parts if part.shape[-1]]
        lead = parts[0].shape[:-1]
        missing = self.width - sum(part.shape[-1] for part in parts) - (0 if tail is None else len(tail))
        if missing:
            pieces.append(parts[0].new_zeros(()).expand(*lead, missing))
        if tail is not None:
            pieces.append(tail.to(self.dtype).expand(*lead, -1))
        joined = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
        return joined.to(self.dtype)
