"""Which decode backend serves a cache, chosen once for each kind of cache and kept.

A backend is chosen by what the cache is (formats, residual window, batch, capacity, device), whether there is
a null token, and the queries' dtype: the `DecodeRequest`. Called by attention.module, once per decoded token.
"""

from __future__ import annotations

import torch

from dba_core.attention.parts import built_backend
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.plugins import PluginChoice
from dba_core.contracts import AttentionShape, DecodeBackend, DecodeRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection

_Key = tuple[KVCachePolicy, int, int, torch.device, torch.dtype]


def decode_request(
    shape: AttentionShape,
    cache: LayerCache,
    *,
    has_null: bool,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> DecodeRequest:
    """What a backend has to do for this cache; dtype is the queries'.

    device: where the cache would be, for one that is on `meta`.
    """
    k_sem, k_geo, v = cache.specs
    device = cache.lengths_device.device if device is None else device
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
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
        device_capability=(properties.major, properties.minor) if properties is not None else None,
        multiprocessors=properties.multi_processor_count if properties is not None else None,
        dtype=str(dtype).removeprefix("torch."),
    )


class DecodeBackends:
    """The backends of one attention layer. One given as an instance serves every cache, nothing is chosen."""

    def __init__(
        self,
        *,
        given: str | PluginChoice | DecodeBackend,
        shape: AttentionShape,
        has_null: bool,
        registry: Registry | None,
    ) -> None:
        choice = PluginChoice(given) if isinstance(given, str) else given
        self._choice = choice if isinstance(choice, PluginChoice) else None
        self._fixed = None if isinstance(choice, PluginChoice) else choice
        self._shape = shape
        self._has_null = has_null
        self._registry = registry
        self._selected: dict[_Key, tuple[Selection, DecodeBackend]] = {}

    @property
    def chosen(self) -> bool:
        """Whether the registry chooses, rather than the caller having given an instance."""
        return self._choice is not None

    def selection(
        self, cache: LayerCache, dtype: torch.dtype, device: torch.device | None = None
    ) -> Selection:
        """What the registry chose for this cache and why. Raises UnsupportedError for an instance.

        device: as in `decode_request`.
        """
        return self._select(cache, dtype, device)[0]

    def backend(self, cache: LayerCache, dtype: torch.dtype) -> DecodeBackend:
        """The backend that decodes over this cache."""
        return self._fixed if self._fixed is not None else self._select(cache, dtype)[1]

    def who(self, cache: LayerCache, dtype: torch.dtype) -> str:
        """The backend of this cache as errors call it."""
        if self._choice is None:
            return f"decode_backend {type(self._fixed).__name__}, given as an object,"
        return self._select(cache, dtype)[0].who

    def _select(
        self, cache: LayerCache, dtype: torch.dtype, device: torch.device | None = None
    ) -> tuple[Selection, DecodeBackend]:
        if self._choice is None:
            raise UnsupportedError(
                "the decode backend was given as an instance, so the registry chose nothing; give its name "
                "to have it selected and explained"
            )
        place = cache.lengths_device.device if device is None else device
        key = (cache.policy, cache.batch, cache.capacity, place, dtype)
        if key not in self._selected:
            registry = self._registry if self._registry is not None else Registry.default()
            request = decode_request(self._shape, cache, has_null=self._has_null, dtype=dtype, device=place)
            selection = registry.select("decode_backend", self._choice, request)
            self._selected[key] = selection, built_backend(selection)
        return self._selected[key]
