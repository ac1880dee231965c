"""The KV cache of a whole model: one `LayerCache` per layer, in step. Made by `LanguageModel.new_cache`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dba_core.cache.layer import LayerCache
from dba_core.errors import CacheError


class KVCache:
    """The layers' caches in order. A forward pass appends to each; between passes all have equal lengths."""

    def __init__(self, layers: Iterable[LayerCache]) -> None:
        if isinstance(layers, LayerCache) or not isinstance(layers, Iterable):
            raise CacheError(f"layers of a KV cache are a {type(layers).__name__}; give a list of LayerCache")
        layers = tuple(layers)
        if not layers:
            raise CacheError("a KV cache needs at least one layer, got none")
        for number, layer in enumerate(layers):
            if not isinstance(layer, LayerCache):
                raise CacheError(
                    f"layer {number} of a KV cache is a {type(layer).__name__}; give a LayerCache"
                )
            if any(layer is other for other in layers[:number]):
                raise CacheError(f"layer {number} of a KV cache is that of another layer; give each its own")
            if (layer.batch, layer.capacity) != (layers[0].batch, layers[0].capacity):
                raise CacheError(
                    f"cache of layer {number} has batch {layer.batch} and capacity {layer.capacity}, that of "
                    f"layer 0 {layers[0].batch} and {layers[0].capacity}; give all layers the same"
                )
        self.layers: tuple[LayerCache, ...] = layers

    def __repr__(self) -> str:
        first = self.layers[0]
        in_step = all(layer.lengths == first.lengths for layer in self.layers)
        text = first.summary(lengths=first.lengths, nbytes=self.nbytes)
        return f"KVCache(layers={len(self.layers)}, {text}{'' if in_step else ', layers out of step'})"

    @property
    def batch(self) -> int:
        return self.layers[0].batch

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens held by each batch row, in every layer. Raises CacheError where layers are out of step."""
        self.check_in_step()
        return self.layers[0].lengths

    @property
    def length(self) -> int:
        """Tokens held by the longest row. Raises CacheError where layers are out of step."""
        return max(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes allocated in all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def check_in_step(self) -> None:
        """Raise CacheError, with the lengths, unless every layer holds the same tokens."""
        expected = self.layers[0].lengths
        for number, layer in enumerate(self.layers):
            if layer.lengths != expected:
                common = [min(row) for row in zip(*(each.lengths for each in self.layers), strict=True)]
                raise CacheError(
                    f"layers of the KV cache are out of step: layer 0 holds {list(expected)} tokens per row, "
                    f"layer {number} holds {list(layer.lengths)}. A forward pass stopped half-way; "
                    f"truncate({common}) or reset() puts the layers in step again"
                )

    def sync(self) -> None:
        """`LayerCache.sync` on every layer, after replays of a CUDA graph that appends."""
        for layer in self.layers:
            layer.sync()

    def check_values(self) -> None:
        """`LayerCache.check_values` on every layer."""
        for layer in self.layers:
            layer.check_values()

    def truncate(self, length: int | Sequence[int]) -> None:
        """`LayerCache.truncate` on every layer, or an error and no change. Brings layers back in step too."""
        for layer in self.layers:
            layer.check_truncate(length)
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forget all tokens; the storage stays."""
        self.truncate(0)
