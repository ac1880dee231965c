"""Keys and values of a layer's cache as prefill reads them: side by side, one width, as stored or as recent.

    k = [k_sem | k_geo | zeros], v = [v | zeros]

Each of the three tensors is stored in a format of its own; where a tensor is in a float format, "recent" and
"stored" are the same. Called by attention.prefill.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.packing import share_heads
from dba_core.attention.projections import Heads
from dba_core.cache.layer import LayerCache
from dba_core.cache.store import TensorStore


@attrs.frozen(eq=False)
class Keys:
    """k and v [B,G,S,W]."""

    k: Tensor
    v: Tensor

    def part(self, start: int, stop: int) -> Keys:
        """Keys start..stop-1, as views."""
        return Keys(self.k[:, :, start:stop], self.v[:, :, start:stop])

    def joined(self, other: Keys) -> Keys:
        """These keys, then the other's."""
        return Keys(torch.cat([self.k, other.k], dim=2), torch.cat([self.v, other.v], dim=2))


@attrs.frozen(kw_only=True, eq=False)
class KeptKeys:
    """Reads one cache in `dtype` with all heads padded to `width`."""

    cache: LayerCache
    width: int
    dtype: torch.dtype

    @property
    def window(self) -> int:
        """How many of the newest tokens a query reads as recent; 0 where that makes no difference."""
        quantized = any(store.quantized and store.head_dim for store in self._stores)
        return self.cache.residual_len if quantized else 0

    def stored(self, start: int, stop: int) -> Keys:
        """Positions start..stop-1 as stored; zeros past a row's length."""
        return self._side_by_side(*(store.stored(start, stop, dtype=self.dtype) for store in self._stores))

    def as_stored(self, heads: Heads) -> Keys:
        """The tokens of `heads` as the cache stores them."""
        return self._side_by_side(
            *(store.as_stored(x, dtype=self.dtype) for store, x in self._with_tokens(heads))
        )

    def as_recent(self, heads: Heads) -> Keys:
        """The tokens of `heads` as the residual window holds them."""
        return self._side_by_side(
            *(store.as_recent(x, dtype=self.dtype) for store, x in self._with_tokens(heads))
        )

    def newest(self, count: int) -> Keys:
        """The newest `count` tokens of every row as the residual window holds them, the last one last.

        A row with fewer than `count` has zeros in front. To be read before an append writes over them.
        """
        lengths = torch.tensor(self.cache.lengths, device=self.cache.lengths_device.device)
        positions = lengths.unsqueeze(1) + torch.arange(-count, 0, device=lengths.device)  # [B, count]
        return self._side_by_side(*(_newest(store, positions, self.dtype) for store in self._stores))

    @property
    def _stores(self) -> tuple[TensorStore, TensorStore, TensorStore]:
        return self.cache.k_sem, self.cache.k_geo, self.cache.v

    def _with_tokens(self, heads: Heads) -> list[tuple[TensorStore, Tensor]]:
        return list(zip(self._stores, (heads.k_sem, heads.k_geo, heads.v), strict=True))

    def _side_by_side(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> Keys:
        k_sem, v = share_heads(k_sem, k_geo.shape[1]), share_heads(v, k_geo.shape[1])
        missing = self.width - k_sem.shape[-1] - k_geo.shape[-1]
        parts = [k_sem, k_geo, k_geo.new_zeros(*k_geo.shape[:3], missing)]
        return Keys(
            torch.cat([p for p in parts if p.shape[-1]], dim=-1), F.pad(v, (0, self.width - v.shape[-1]))
        )


def _newest(store: TensorStore, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The tokens at positions [B,n] from the ring, or from a float format's storage: [B,G,n,D]."""
    plane = store.codes if store.recent_ring is None else store.recent_ring
    index = (positions % plane.shape[2])[:, None, :, None]  # [B, 1, n, 1]
    values = plane.gather(2, index.expand(-1, store.n_heads, -1, store.head_dim)).to(dtype)
    return values.masked_fill((positions < 0)[:, None, :, None], 0.0)
