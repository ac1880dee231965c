"""Which decode backend serves a cache, chosen once for each cache and kept while it lives; how it is called.

A backend is chosen by what the cache is (formats, residual window, batch, capacity, device), whether there is
a null token, and the queries' dtype: the `DecodeRequest`. What was chosen stays as long as its cache, and for
the `KEPT` last requests, so that the next cache that asks for the same has it: a process that makes caches of
ever new sizes keeps no more than that.

What a backend returns is looked at where it enters (`ServedCache.decode`): its form in every call, its values
in the first one over a cache, and in every one after `check_every_call`. A form cannot tell everything: out
[B,Dv,H] passes as [B,H,Dv] where H = Dv. `dba plugins check` compares numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dba_core.attention.entrance import built_backend, finite, form_problem, kind_of, may_wait, wrong
from dba_core.cache.bytes import cached_tensors
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import (
    AttentionShape,
    CachedTensor,
    DecodeBackend,
    DecodeOutput,
    DecodeRequest,
    KVLayer,
    NullKV,
    TokenWriter,
)
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice
from dba_core.registry.contain import blame, shown

#: Requests whose backend stays although no cache needs it any more.
KEPT = 16
_CALLED, _WROTE = "failed when it was called", "failed when it wrote to the cache"

_Chosen = tuple[Selection, DecodeBackend]


def decode_request(
    shape: AttentionShape, cache: LayerCache, *, has_null: bool, dtype: torch.dtype
) -> DecodeRequest:
    """What a backend has to do for this cache; dtype is the queries'."""
    where, sizes = cache.lengths_device.device, (cache.batch, cache.capacity)
    return _request(shape, cache.specs, cache.policy, sizes, where, has_null=has_null, dtype=dtype)


def _request(
    shape: AttentionShape,
    specs: Iterable[CachedTensor],
    policy: KVCachePolicy,
    sizes: tuple[int, int],
    device: torch.device,
    *,
    has_null: bool,
    dtype: torch.dtype,
) -> DecodeRequest:
    """The same for any cache of k_sem, k_geo and v like `specs`; sizes: its batch and capacity."""
    k_sem, k_geo, v = specs
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return DecodeRequest(
        shape=shape,
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        residual_len=policy.residual,
        batch=sizes[0],
        capacity=sizes[1],
        has_null=has_null,
        device=str(device),
        device_capability=(properties.major, properties.minor) if properties is not None else None,
        multiprocessors=properties.multi_processor_count if properties is not None else None,
        dtype=str(dtype).removeprefix("torch."),
    )


class ServedCache:
    """The backend of one cache for queries of one dtype, and the writer of what is appended to it.

    Every call takes the cache, which is not held: what was made for it ends with it.
    """

    def __init__(self, backend: DecodeBackend, selection: Selection | None, *, v_width: int) -> None:
        """selection: how the backend was chosen; None: it was given. v_width: Dv of the cache."""
        self.backend, self.selection, self._v_width = backend, selection, v_width
        self._seen = False

    @property
    def writer(self) -> TokenWriter | None:
        """Stores the tokens that come to the cache; None leaves it to the cache."""
        return None if self.backend.writer is None else self

    def who(self) -> str:
        """The backend as errors call it."""
        if self.selection is None:
            return f"decode_backend {type(self.backend).__name__}, given as an object,"
        return self.selection.who

    def decode(
        self, q_sem: Tensor, q_geo: Tensor, cache: KVLayer, *, null: NullKV | None, every_call: bool
    ) -> Tensor:
        """The backend's out [B,H,Dv]. Raises PluginError for another form, and for a NaN from finite queries.

        every_call: look at the values in this call too, which waits for the device; never inside a captured
        CUDA graph.
        """
        done: object = self._named(_CALLED, self.backend.decode, q_sem, q_geo, cache, null=null)
        if not isinstance(done, DecodeOutput):
            raise wrong(self.who(), f"returned {kind_of(done)}", "a DecodeOutput")
        batch, heads, _ = q_geo.shape
        wanted = (batch, heads, self._v_width)
        problem = form_problem(done.out, wanted, device=q_geo.device, dtype=q_geo.dtype)
        if problem is not None:
            turned = isinstance(done.out, Tensor) and tuple(done.out.shape) == (batch, wanted[2], heads)
            note = ", which is [B,Dv,H]: heads and values are transposed" if turned else ""
            raise wrong(self.who(), f"returned out {problem[0]}{note}", f"{problem[1]} [B,H,Dv]")
        if done.lse is not None:
            problem = form_problem(done.lse, (batch, heads), device=q_geo.device, dtype=torch.float32)
            if problem is not None:
                raise wrong(self.who(), f"returned lse {problem[0]}", f"{problem[1]} [B,H]")
        if (every_call or not self._seen) and may_wait(q_geo):
            if not finite(done.out) and finite(q_sem) and finite(q_geo):
                raise wrong(
                    self.who(), "returned out with a NaN or an infinity from finite queries", "finite numbers"
                )
            self._seen = True
        return done.out

    def write(self, cache: KVLayer, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> bool:
        """As `TokenWriter.write`; exceptions get the backend's name, and the answer is looked at."""
        writer = self.backend.writer
        if writer is None:
            return False
        written: object = self._named(_WROTE, writer.write, cache, k_sem, k_geo, v)
        if not isinstance(written, bool):
            raise wrong(self.who(), f"answered {shown(written)} when it wrote to the cache", "True or False")
        return written

    def _named(self, doing: str, method: Callable[..., object], *given: Any, **named: Any) -> object:
        """What the backend's method returns; what it raises gets the backend's name."""
        done = False
        try:
            answer = method(*given, **named)
            done = True
        finally:
            if not done:
                blame(self.who(), doing)
        return answer


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
        #: look at the values that backends return in every call, not in the first one over a cache alone
        self.every_call = False
        self._given = PluginChoice(given) if isinstance(given, str) else given
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

    def serving(self, cache: LayerCache, dtype: torch.dtype) -> ServedCache:
        """What serves this cache for queries of this dtype. Raises UnsupportedError where nothing does."""
        by_dtype = self._served.setdefault(cache, {})
        found = by_dtype.get(dtype)
        if found is None:
            selection, backend = None, self._given
            if isinstance(backend, PluginChoice):
                request = decode_request(self._shape, cache, has_null=self._has_null, dtype=dtype)
                selection, backend = self._for_request(backend, request)
            found = by_dtype[dtype] = ServedCache(backend, selection, v_width=cache.v.head_dim)
        return found

    def selection(self, cache: LayerCache, dtype: torch.dtype) -> Selection:
        """What the registry chose for this cache and why. Raises UnsupportedError for an instance."""
        selection = self.serving(cache, dtype).selection
        return self._refuse() if selection is None else selection

    def selection_without_cache(
        self, policy: KVCachePolicy, *, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> Selection:
        """The same for a cache of one sequence that is not made."""
        if not isinstance(self._given, PluginChoice):
            self._refuse()
        specs = (
            CachedTensor(n_heads=heads, head_dim=width, format=fmt.format, qblock=fmt.qblock)
            for heads, width, fmt in cached_tensors(self._shape, policy)
        )
        sizes = 1, capacity
        request = _request(self._shape, specs, policy, sizes, device, has_null=self._has_null, dtype=dtype)
        return self._for_request(self._given, request)[0]

    @property
    def registry(self) -> Registry:
        """The layer's; where it was given none, that of this process, which a copy in another one has too."""
        return Registry.default() if self._registry is None else self._registry

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            "the decode backend was given as an instance, so the registry chose nothing; give its name "
            "to have it selected and explained"
        )

    def _for_request(self, choice: PluginChoice, request: DecodeRequest) -> _Chosen:
        chosen = self._newest.pop(request, None)
        if chosen is None:
            selection = self.registry.select("decode_backend", choice, request)
            chosen = selection, built_backend(selection)
        self._newest[request] = chosen
        if len(self._newest) > KEPT:
            self._newest.popitem(last=False)
        return chosen

    def _forget(self) -> None:
        self._served: WeakKeyDictionary[LayerCache, dict[torch.dtype, ServedCache]] = WeakKeyDictionary()
        self._newest: OrderedDict[DecodeRequest, _Chosen] = OrderedDict()
