"""Which decode backend serves a cache, chosen once for each kind of cache and kept.

A backend is chosen by what the cache is (formats, residual window, batch, capacity, device), whether there is a
null token, and the queries' dtype: the `DecodeRequest`. Called by attention.module, once per decoded token.
"""

from __future__ import annotations

from typing import cast

import attrs
import torch

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.plugins import PluginChoice
from dba_core.contracts import AttentionShape, DecodeBackend, DecodeRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection

_Key = tuple[KVCachePolicy, int, int, torch.device, torch.dtype]


def decode_request(
    shape: AttentionShape, cache: LayerCache, *, has_null: bool, dtype: torch.dtype
) -> DecodeRequest:
    """What a backend has to do for this cache; dtype is the queries'."""
    k_sem, k_geo, v = cache.specs
    device = cache.lengths_device.device
    return DecodeRequest(
        shape=shape,
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        residual_len=cache.residual_len,
        batch=cache.batch,
        capacity=cache.capacity,
        has_null=has_null,
        device=str(device),
        device_capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        dtype=str(dtype).removeprefix("torch."),
    )


@attrs.define(kw_only=True, eq=False)
class DecodeBackends:
    """The backends of one attention layer. `fixed` is an instance that the caller gave; nothing is chosen then."""

    shape: AttentionShape
    has_null: bool
    choice: PluginChoice
    registry: Registry | None
    fixed: DecodeBackend | None = None
    _chosen: dict[_Key, tuple[Selection, DecodeBackend]] = attrs.field(factory=dict, init=False)

    def selection(self, cache: LayerCache, dtype: torch.dtype) -> Selection:
        """What the registry chose for this cache and why. Raises UnsupportedError for an instance."""
        if self.fixed is not None:
            raise UnsupportedError(
                f"decode backend {self.fixed.name!r} was given as an instance, so the registry chose nothing; "
                "give its name to have it selected and explained"
            )
        return self._select(cache, dtype)[0]

    def backend(self, cache: LayerCache, dtype: torch.dtype) -> DecodeBackend:
        """The backend that decodes over this cache."""
        return self.fixed if self.fixed is not None else self._select(cache, dtype)[1]

    def _select(self, cache: LayerCache, dtype: torch.dtype) -> tuple[Selection, DecodeBackend]:
        key = (cache.policy, cache.batch, cache.capacity, cache.lengths_device.device, dtype)
        if key not in self._chosen:
            registry = self.registry if self.registry is not None else Registry.default()
            request = decode_request(self.shape, cache, has_null=self.has_null, dtype=dtype)
            selection = registry.select("decode_backend", self.choice, request)
            self._chosen[key] = selection, cast("DecodeBackend", selection.build())
        return self._chosen[key]
