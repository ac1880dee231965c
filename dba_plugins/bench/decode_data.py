"""Tensors for `dba bench decode`: how many copies, how many bytes, and what a cache's newest query reads."""

from __future__ import annotations

from torch import Tensor

from dba_core.cache.layer import LayerCache
from dba_core.cache.store import TensorStore
from dba_core.contracts import AttentionShape
from dba_plugins.bench.machine import last_cache_bytes, memory_bytes

_MOST_COPIES = 32
FILL = 4096


def scale_of(shape: AttentionShape) -> float:
    """What makes scores of N(0,1) queries and keys have a spread of 1."""
    return float((shape.sem_head_dim + shape.geo_head_dim) ** -0.5)


def copies(size: int) -> int:
    """So many that together they are three times the last-level cache, and not a quarter of the memory."""
    wanted = -(-3 * (last_cache_bytes() or 1 << 25) // max(1, size))
    room = (memory_bytes() or 1 << 34) // 4 // max(1, size)
    return max(1, min(_MOST_COPIES, wanted, room))


def cache_bytes(cache: LayerCache) -> int:
    """What one decoded token reads: codes and scales up to the length."""
    stores = (cache.k_sem, cache.k_geo, cache.v)
    planes = [plane for store in stores for plane in (store.codes, store.scales) if plane is not None]
    return sum(plane.nbytes * cache.length // cache.capacity for plane in planes)


def copy_planes(source: LayerCache, target: LayerCache) -> None:
    """Make `target` hold what `source` holds, through its own append of the dequantized tokens.

    Dequantized values quantize to themselves up to rounding; what matters is that memory differs and content
    is of the same kind.
    """
    for start in range(0, source.length, FILL):
        stop = min(start + FILL, source.length)
        parts = [store.stored(start, stop) for store in (source.k_sem, source.k_geo, source.v)]
        target.append(*parts)


def as_read(store: TensorStore, cache: LayerCache) -> Tensor:
    """Row 0 as its newest query reads it: float64 [1,G,S,D]."""
    return store.read(0, cache.lengths[0], row=0).double()
