"""One case of `dba bench decode`: a batch, a length, with or without a null token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dba_core.attention.decode import decode_request
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, DecodeBackend, NullKV
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice
from dba_plugins.bench.baselines import Baseline
from dba_plugins.bench.decode_data import as_read, cache_bytes, copies, copy_planes, scale_of
from dba_plugins.bench.timing import Timing, interleaved

#: Tokens that are appended at a time.
FILL = 4096


class DecodeCase:
    """One batch, length and null token."""

    def __init__(
        self,
        *,
        shape: AttentionShape,
        policy: KVCachePolicy,
        device: torch.device,
        batch: int,
        length: int,
        null: bool,
        backends: Sequence[str],
        repeats: int,
        registry: Registry,
    ) -> None:
        """backends: names; empty takes every one that is installed and supports the case."""
        self.shape, self.policy, self.device, self.registry = shape, policy, device, registry
        self.batch, self.length, self.backends, self.repeats = batch, length, tuple(backends), repeats
        self.notes: list[str] = []
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*size, generator=generator) * scale).to(device)

        heads, scale = shape.n_kv_heads, scale_of(shape)
        self.q_sem = draw(batch, shape.n_heads, shape.sem_head_dim, scale=scale)
        self.q_geo = draw(batch, shape.n_heads, shape.geo_head_dim, scale=scale)
        self.k_sem = draw(batch, heads, length, shape.sem_head_dim)
        self.k_geo = draw(batch, heads, length, shape.geo_head_dim)
        self.v = draw(batch, heads, length, shape.v_head_dim)
        self.null = (
            NullKV(
                k_sem=draw(heads, shape.sem_head_dim),
                k_geo=draw(heads, shape.geo_head_dim),
                v=draw(heads, shape.v_head_dim),
            )
            if null
            else None
        )

    def measure(self, others: Sequence[Baseline], bandwidth: float) -> list[dict[str, Any]]:
        calls: dict[str, Callable[[int], Any]] = {}
        facts: dict[str, dict[str, Any]] = {}
        caches = self._caches()
        exact = self._exact(caches[0])
        for backend in self._backends(caches[0]):
            calls[backend.name] = self._backend_call(backend, caches)
            facts[backend.name] = {"kind": "backend", "bytes": cache_bytes(caches[0]), "exact": exact}
        plain = self._exact(None)
        keys = torch.cat([self.k_sem, self.k_geo], dim=-1)
        for baseline in others:
            call, size = self._baseline_call(baseline, keys)
            calls[baseline.name] = call
            facts[baseline.name] = {"kind": "baseline", "bytes": size, "exact": plain}
        errors = {name: self._error(call(0), facts[name]["exact"]) for name, call in calls.items()}
        timings = interleaved(calls, repeats=self.repeats, device=self.device)
        return [
            self._row(name, timing, facts[name], errors[name], timings, bandwidth)
            for name, timing in timings.items()
        ]

    def _caches(self) -> list[LayerCache]:
        """Copies with the same content, together larger than the last-level cache."""
        shape = self.shape
        made = [self._cache(shape)]
        for _ in range(copies(made[0].nbytes) - 1):
            twin = self._cache(shape, empty=True)
            copy_planes(made[0], twin)
            made.append(twin)
        return made

    def _cache(self, shape: AttentionShape, *, empty: bool = False) -> LayerCache:
        sem, geo, v = shape.cached_heads
        cache = LayerCache(
            registry=Registry.default(),
            k_sem=(sem, shape.sem_head_dim),
            k_geo=(geo, shape.geo_head_dim),
            v=(v, shape.v_head_dim),
            batch=self.batch,
            capacity=self.length,
            policy=self.policy,
            device=self.device,
        )
        for start in range(0, 0 if empty else self.length, FILL):
            part = slice(start, start + FILL)
            cache.append(self.k_sem[:, :, part], self.k_geo[:, :, part], self.v[:, :, part])
        return cache

    def _backends(self, cache: LayerCache) -> list[DecodeBackend]:
        """Those that are asked for, or all that support the cache; others are noted with their reasons."""
        asked = decode_request(self.shape, cache, has_null=self.null is not None, dtype=self.q_geo.dtype)
        named = self.backends
        infos = self.registry.list()
        names = named or tuple(
            dict.fromkeys(info.qualified for info in infos if info.kind == "decode_backend")
        )
        found: list[DecodeBackend] = []
        for name in names:
            try:
                selection = self.registry.select("decode_backend", PluginChoice(name), asked)
            except UnsupportedError as error:
                if named:
                    raise
                self.notes.append(f"backend {name} left out: {'; '.join(map(str, error.reasons))}")
                continue
            found.append(selection.build())
        return found

    def _backend_call(self, backend: DecodeBackend, caches: list[LayerCache]) -> Callable[[int], Tensor]:
        def call(round_: int) -> Tensor:
            cache = caches[round_ % len(caches)]
            return backend.decode(self.q_sem, self.q_geo, cache, null=self.null).out

        return call

    def _baseline_call(self, baseline: Baseline, keys: Tensor) -> tuple[Callable[[int], Tensor], int]:
        """The null token is one more key, put in front beforehand."""
        k, v = baseline.prepare(*self._with_null(keys))
        size = k.nbytes + v.nbytes
        twins = [(k, v), *((k.clone(), v.clone()) for _ in range(copies(size) - 1))]
        q = torch.cat([self.q_sem, self.q_geo], dim=-1).unsqueeze(2).to(baseline.dtype)

        def call(round_: int) -> Tensor:
            return baseline.run(q, *twins[round_ % len(twins)])[..., 0, : self.v.shape[-1]]

        return call, size

    def _with_null(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        if self.null is None:
            return keys, self.v
        first = torch.cat([self.null.k_sem, self.null.k_geo], dim=-1)
        return tuple(  # type: ignore[return-value]
            torch.cat([one[None, :, None].expand(self.batch, -1, -1, -1), many], dim=2)
            for one, many in ((first, keys), (self.null.v, self.v))
        )

    def _exact(self, cache: LayerCache | None) -> Tensor:
        """Row 0 in float64 over what the cache holds (None: over the tensors themselves): [H,Dv]."""
        if cache is None:
            parts = [x[:1].double() for x in (self.k_sem, self.k_geo, self.v)]
        else:
            parts = [as_read(store, cache) for store in (cache.k_sem, cache.k_geo, cache.v)]
        k = torch.cat(parts[:2], dim=-1)[0]  # [G, S, D]
        v = parts[2][0]
        if self.null is not None:
            first = torch.cat([self.null.k_sem, self.null.k_geo], dim=-1).double()
            k, v = torch.cat([first[:, None], k], 1), torch.cat([self.null.v.double()[:, None], v], 1)
        q = torch.cat([self.q_sem[0], self.q_geo[0]], dim=-1).double()
        grouped = torch.unflatten(q, 0, (len(k), -1))  # [G, H/G, D]
        exact: Tensor = ((grouped @ k.mT).softmax(-1) @ v).flatten(0, 1)
        return exact

    def _error(self, out: Tensor, exact: Tensor) -> float:
        return float((out[0].double() - exact).abs().max())

    def _row(
        self,
        name: str,
        timing: Timing,
        facts: dict[str, Any],
        error: float,
        timings: dict[str, Timing],
        bandwidth: float,
    ) -> dict[str, Any]:
        sdpa = min(each.median_ms for other, each in timings.items() if other.startswith("sdpa fp32"))
        fastest = min(each.median_ms for other, each in timings.items() if "fp32" in other)
        roofline = facts["bytes"] / bandwidth * 1e3
        ratios = {
            other: each.median_ms / timing.median_ms for other, each in timings.items() if other != name
        }
        return {
            "batch": self.batch,
            "length": self.length,
            "null": "yes" if self.null is not None else "no",
            "name": name,
            "kind": facts["kind"],
            "ms": timing.median_ms,
            "low_ms": timing.low_ms,
            "high_ms": timing.high_ms,
            "repeats": timing.repeats,
            "milliseconds": f"{timing.median_ms:.3f} ±{timing.spread:.0%}",
            "bytes": facts["bytes"],
            "megabytes": facts["bytes"] / 1e6,
            "roofline_ms": roofline,
            "roofline_multiple": timing.median_ms / roofline,
            "max_error": error,
            "against_sdpa": sdpa / timing.median_ms,
            "against_fastest": fastest / timing.median_ms,
            "against_flex": ratios.get("flex fp32"),
            "against_streaming": ratios.get("streaming"),
            "against": ratios,
        }
