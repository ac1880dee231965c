"""Which decode backend serves a cache, chosen once for each cache and kept while it lives.

A backend is chosen by what the cache is (formats, residual window, batch, capacity, device), whether there is
a null token, and the queries' dtype: the `DecodeRequest`. What was chosen stays as long as its cache, and for
the `KEPT` last requests, so that the next cache that asks for the same has it: a process that makes caches of
ever new sizes keeps no more than that. Called by attention.module, once per decoded token.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch

from dba_core.attention.parts import built_backend
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, CachedTensor, DecodeBackend, DecodeRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice

#: Requests whose backend stays although no cache needs it any more.
KEPT = 16

_Chosen = tuple[Selection, DecodeBackend]


def decode_request(
    shape: AttentionShape, cache: LayerCache, *, has_null: bool, dtype: torch.dtype
) -> DecodeRequest:
    """What a backend has to do for this cache; dtype is the queries'."""
    return _request(
        shape,
        cache.specs,
        residual_len=cache.residual_len,
        batch=cache.batch,
        capacity=cache.capacity,
        has_null=has_null,
        device=cache.lengths_device.device,
        dtype=dtype,
    )


def _request(
    shape: AttentionShape,
    specs: tuple[CachedTensor, CachedTensor, CachedTensor],
    *,
    residual_len: int,
    batch: int,
    capacity: int,
    has_null: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> DecodeRequest:
    k_sem, k_geo, v = specs
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return DecodeRequest(
        shape=shape,
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        residual_len=residual_len,
        batch=batch,
        capacity=capacity,
        has_null=has_null,
        device=str(device),
        device_capability=(properties.major, properties.minor) if properties is not None else None,
        multiprocessors=properties.multi_processor_count if properties is not None else None,
        dtype=str(dtype).removeprefix("torch."),
    )


def _specs(shape: AttentionShape, policy: KVCachePolicy) -> tuple[CachedTensor, CachedTensor, CachedTensor]:
    """Heads, width and format of k_sem, k_geo and v in a cache of this policy."""
    widths = (shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim)
    formats = (policy.k_sem, policy.k_geo, policy.v)
    k_sem, k_geo, v = (
        CachedTensor(n_heads=heads, head_dim=width, format=fmt.format, qblock=fmt.qblock)
        for heads, width, fmt in zip(shape.cached_heads, widths, formats, strict=True)
    )
    return k_sem, k_geo, v


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
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """What was chosen belongs to caches that a copy or a pickle does not have: it chooses anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_served", "_newest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def chosen(self) -> bool:
        """Whether the registry chooses, rather than the caller having given an instance."""
        return self._choice is not None

    def selection(self, cache: LayerCache, dtype: torch.dtype) -> Selection:
        """What the registry chose for this cache and why. Raises UnsupportedError for an instance."""
        return self._select(cache, dtype)[0]

    def selection_without_cache(
        self, policy: KVCachePolicy, *, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> Selection:
        """The same for a cache of one sequence that is not made."""
        request = _request(
            self._shape,
            _specs(self._shape, policy),
            residual_len=policy.residual,
            batch=1,
            capacity=capacity,
            has_null=self._has_null,
            device=device,
            dtype=dtype,
        )
        return self._for_request(self._named(), request)[0]

    def backend(self, cache: LayerCache, dtype: torch.dtype) -> DecodeBackend:
        """The backend that decodes over this cache."""
        return self._fixed if self._fixed is not None else self._select(cache, dtype)[1]

    def who(self, cache: LayerCache, dtype: torch.dtype) -> str:
        """The backend of this cache as errors call it."""
        if self._choice is None:
            return f"decode_backend {type(self._fixed).__name__}, given as an object,"
        return self._select(cache, dtype)[0].who

    def _select(self, cache: LayerCache, dtype: torch.dtype) -> _Chosen:
        choice = self._named()
        served = self._served.setdefault(cache, {})
        if dtype not in served:
            request = decode_request(self._shape, cache, has_null=self._has_null, dtype=dtype)
            served[dtype] = self._for_request(choice, request)
        return served[dtype]

    def _named(self) -> PluginChoice:
        if self._choice is None:
            raise UnsupportedError(
                "the decode backend was given as an instance, so the registry chose nothing; give its name "
                "to have it selected and explained"
            )
        return self._choice

    def _for_request(self, choice: PluginChoice, request: DecodeRequest) -> _Chosen:
        chosen = self._newest.pop(request, None)
        if chosen is None:
            registry = self._registry if self._registry is not None else Registry.default()
            selection = registry.select("decode_backend", choice, request)
            chosen = selection, built_backend(selection)
        self._newest[request] = chosen
        if len(self._newest) > KEPT:
            self._newest.popitem(last=False)
        return chosen

    def _forget(self) -> None:
        self._served: WeakKeyDictionary[LayerCache, dict[torch.dtype, _Chosen]] = WeakKeyDictionary()
        self._newest: OrderedDict[DecodeRequest, _Chosen] = OrderedDict()
