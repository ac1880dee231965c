"""`dba bench decode` on a GPU: one token over a quantized cache, beside fp16 attention, on a GPU.

For every batch, length, number of KV heads and width of values: microseconds, bytes per second as a share of
the copy bandwidth measured in the same run, and how many times faster than the fastest fp16 attention with
heads of 128 channels, and with heads as narrow as the cache's. Cases run from small to large and stop when
the time is up; what did not run is named.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from dba_core.attention.decode import decode_request
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, DecodeBackend, NullKV
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.bandwidth import read_bandwidth
from dba_plugins.bench.decode_data import cache_bytes, scale_of
from dba_plugins.bench.gpu_baselines import USUAL_WIDTH, Floats, fp16_calls
from dba_plugins.bench.gpu_timing import gpu_timings
from dba_plugins.bench.measured import measured
from dba_plugins.bench.timing import Timing

COLUMNS = (
    Column("batch", "batch"),
    Column("length", "tokens", "{:,}"),
    Column("kv_heads", "KV heads"),
    Column("v_dim", "v"),
    Column("null", "null"),
    Column("name", "what"),
    Column("microseconds", "us"),
    Column("gigabytes", "GB/s", "{:.0f}"),
    Column("share", "of copy bandwidth", "{:.0%}"),
    Column("against_fp16", "against fp16, 128 wide", "{:.2f}x"),
    Column("against_same", "as narrow", "{:.2f}x"),
    Column("max_error", "max error", "{:.0e}"),
)
#: Bytes of the tokens that are appended at a time, and the longest total for which the error is looked at.
_CHUNK, _CHECKED = 1 << 28, 1 << 18
Timer = Callable[..., tuple[dict[str, Timing], tuple[str, ...]]]


@attrs.frozen(kw_only=True)
class GpuDecodeSettings:
    """backends: names; empty takes the two of Triton. budget_seconds: no case begins after that."""

    policy: KVCachePolicy
    heads: int = 32
    kv_heads: tuple[int, ...] = (8, 32)
    sem_dim: int = 32
    geo_dim: int = 64
    v_dims: tuple[int, ...] = (64, 128)
    batches: tuple[int, ...] = (1, 8, 64)
    lengths: tuple[int, ...] = (4096, 32768, 131072)
    nulls: tuple[bool, ...] = (False, True)
    backends: tuple[str, ...] = ()
    repeats: int = 20
    budget_seconds: float = 480.0
    device: str = "cuda"


@attrs.frozen(kw_only=True)
class _Case:
    batch: int
    length: int
    kv_heads: int
    v_dim: int

    @property
    def size(self) -> int:
        return self.batch * self.length * self.kv_heads * (96 + self.v_dim)

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.length:,} tokens, {self.kv_heads} KV heads, values of {self.v_dim}"


def measure_gpu_decode(
    settings: GpuDecodeSettings, reporter: Reporter, *, command: str, timer: Timer = gpu_timings
) -> Report:
    """Every case that fits the memory and the time. Raises UnsupportedError for a named backend's reasons."""
    device = torch.device(settings.device)
    registry = Registry.default()
    begun = time.monotonic()
    bandwidth = read_bandwidth(device)
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for case in _cases(settings):
        if time.monotonic() - begun > settings.budget_seconds:
            notes[f"left out, the time of {settings.budget_seconds:g} s was up: {case}"] = None
            continue
        reporter.note(f"{case} ...")
        found, said = _measure(case, settings, device, registry, bandwidth, timer)
        rows += found
        notes |= dict.fromkeys(said)
    return measured(
        name="decode-gpu",
        title="Decoding one token from a quantized cache on a GPU",
        command=command,
        columns=COLUMNS,
        rows=tuple(rows),
        device=str(device),
        notes=(*_notes(settings, bandwidth), *notes),
    )


def _cases(settings: GpuDecodeSettings) -> list[_Case]:
    """From the fewest bytes to the most."""
    every = itertools.product(settings.batches, settings.lengths, settings.kv_heads, settings.v_dims)
    cases = [_Case(batch=b, length=n, kv_heads=g, v_dim=v) for b, n, g, v in every]
    return sorted(cases, key=lambda case: case.size)


def _measure(
    case: _Case,
    settings: GpuDecodeSettings,
    device: torch.device,
    registry: Registry,
    bandwidth: float,
    timer: Timer,
) -> tuple[list[dict[str, Any]], list[str]]:
    shape = AttentionShape(
        d_model=settings.heads * USUAL_WIDTH,
        n_heads=settings.heads,
        n_kv_heads=case.kv_heads,
        sem_head_dim=settings.sem_dim,
        geo_head_dim=settings.geo_dim,
        v_head_dim=case.v_dim,
    )
    notes: list[str] = []
    calls: dict[str, Callable[[], Tensor]] = {}
    facts: dict[str, dict[str, Any]] = {}
    cache = _filled(shape, case, settings.policy, device)
    size = cache_bytes(cache)
    for name, null, call, error in _backend_calls(shape, cache, case, settings, registry, notes):
        key = f"{name}{', null' if null else ''}"
        calls[key] = call
        facts[key] = {"name": name, "null": null, "bytes": size, "max_error": error, "kind": "backend"}
    same = max(settings.sem_dim + settings.geo_dim, case.v_dim)
    for width in dict.fromkeys((USUAL_WIDTH, same)):
        for key, found, floats in _fp16(case, settings, width, device, notes):
            calls[key] = found
            facts[key] = {"name": key, "null": False, "bytes": floats.nbytes, "kind": "fp16"}
    timings, eager = timer(calls, repeats=settings.repeats, device=device)
    notes += [f"{key} could not be captured in a CUDA graph and is timed with its launches" for key in eager]

    def fastest(width: int) -> float | None:
        end = f"fp16, {width} wide"
        return min((each.median_ms for key, each in timings.items() if key.endswith(end)), default=None)

    bests = fastest(USUAL_WIDTH), fastest(same)
    return [_row(case, facts[key], timing, bandwidth, *bests) for key, timing in timings.items()], notes


def _fp16(
    case: _Case, settings: GpuDecodeSettings, width: int, device: torch.device, notes: list[str]
) -> Iterator[tuple[str, Callable[[], Tensor], Floats]]:
    floats = Floats(
        batch=case.batch,
        heads=settings.heads,
        kv_heads=case.kv_heads,
        tokens=case.length,
        width=width,
        device=device,
    )
    if floats.nbytes > _free_bytes(device) // 2:
        notes.append(f"fp16, {width} wide, does not fit the memory beside the cache: {case}")
        return
    for name, found in fp16_calls(floats):
        key = f"{name} fp16, {width} wide"
        if isinstance(found, str):
            notes.append(f"{key}: {found}")
        else:
            yield key, found, floats


def _row(
    case: _Case,
    facts: dict[str, Any],
    timing: Timing,
    bandwidth: float,
    usual: float | None,
    same: float | None,
) -> dict[str, Any]:
    rate = facts["bytes"] / (timing.median_ms / 1e3)
    return {
        "batch": case.batch,
        "length": case.length,
        "kv_heads": case.kv_heads,
        "v_dim": case.v_dim,
        "null": "yes" if facts["null"] else "no",
        "name": facts["name"],
        "kind": facts["kind"],
        **timing.fields,
        "microseconds": f"{timing.median_ms * 1e3:.1f} ±{timing.spread:.0%}",
        "bytes": facts["bytes"],
        "gigabytes": rate / 1e9,
        "bandwidth": bandwidth,
        "share": rate / bandwidth,
        "against_fp16": None if usual is None else usual / timing.median_ms,
        "against_same": None if same is None else same / timing.median_ms,
        "max_error": facts.get("max_error"),
    }


def _filled(shape: AttentionShape, case: _Case, policy: KVCachePolicy, device: torch.device) -> LayerCache:
    """A cache of N(0,1) keys and values, appended a stretch at a time by the device's own writer."""
    heads = case.kv_heads
    widths = (shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim)
    k_sem, k_geo, v = ((heads, width) for width in widths)
    cache = LayerCache(
        registry=Registry.default(),
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        batch=case.batch,
        capacity=case.length,
        policy=policy,
        device=device,
    )
    step = max(1, _CHUNK // (case.batch * heads * sum(widths) * 2))
    writer = _writer(shape, cache)
    for start in range(0, case.length, step):
        count = min(step, case.length - start)
        x = [
            torch.randn(case.batch, heads, count, width, device=device, dtype=torch.float16)
            for width in widths
        ]
        cache.append(*x, writer=writer)
    return cache


def _writer(shape: AttentionShape, cache: LayerCache) -> Any:
    asked = decode_request(shape, cache, has_null=False, dtype=torch.float16)
    return Registry.default().select("decode_backend", PluginChoice("auto"), asked).build().writer


def _backend_calls(
    shape: AttentionShape,
    cache: LayerCache,
    case: _Case,
    settings: GpuDecodeSettings,
    registry: Registry,
    notes: list[str],
) -> Iterator[tuple[str, bool, Callable[[], Tensor], float | None]]:
    device, scale = cache.lengths_device.device, scale_of(shape)
    q_sem, q_geo = (
        torch.randn(case.batch, shape.n_heads, width, device=device, dtype=torch.float16) * scale
        for width in (shape.sem_head_dim, shape.geo_head_dim)
    )
    nulls = NullKV(
        k_sem=torch.randn(case.kv_heads, shape.sem_head_dim, device=device),
        k_geo=torch.randn(case.kv_heads, shape.geo_head_dim, device=device),
        v=torch.randn(case.kv_heads, shape.v_head_dim, device=device),
    )
    for null in settings.nulls:
        given = nulls if null else None
        asked = decode_request(shape, cache, has_null=null, dtype=torch.float16)
        right = (
            _right(asked, q_sem, q_geo, cache, given, registry)
            if case.batch * case.length <= _CHECKED
            else None
        )
        for name in settings.backends or ("triton_1pass", "triton_2pass"):
            try:
                backend: DecodeBackend = registry.select("decode_backend", PluginChoice(name), asked).build()
            except UnsupportedError as error:
                if settings.backends:
                    raise
                notes.append(f"backend {name} left out: {'; '.join(map(str, error.reasons))}")
                continue
            call = _decode_call(backend, q_sem, q_geo, cache, given)
            error_ = None if right is None else float((call().float() - right).abs().max())
            yield name, null, call, error_


def _decode_call(
    backend: DecodeBackend, q_sem: Tensor, q_geo: Tensor, cache: LayerCache, null: NullKV | None
) -> Callable[[], Tensor]:
    return lambda: backend.decode(q_sem, q_geo, cache, null=null).out


def _right(
    asked: Any, q_sem: Tensor, q_geo: Tensor, cache: LayerCache, null: NullKV | None, registry: Registry
) -> Tensor:
    """The answer of `streaming` over the same cache with float32 queries."""
    reference = registry.select("decode_backend", PluginChoice("streaming"), asked).build()
    out: Tensor = reference.decode(q_sem.float(), q_geo.float(), cache, null=null).out
    return out


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 1 << 34
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _notes(settings: GpuDecodeSettings, bandwidth: float) -> tuple[str, ...]:
    return (
        f"KV policy {settings.policy.short}; {settings.heads} query heads, Ds {settings.sem_dim}, Dg "
        f"{settings.geo_dim}; fp16 queries; medians of {settings.repeats} rounds in turn",
        f"copy bandwidth measured in this run: {bandwidth / 1e9:,.0f} GB/s",
        "CUDA events around the replay of a CUDA graph, L2 flushed before every one",
        "us: the median, and half the distance of its quartiles; ratios above 1: faster than fp16",
        "max error: against `streaming` with float32 queries over the same cache",
    )
