"""`dba bench decode`: one token over a cache of each length, every backend beside the baselines.

Caches are filled with N(0,1) keys and values; queries give scores of spread 1. Candidates take turns in one
process. Each has several copies of its tensors, more than the last-level cache holds, and takes the next copy
in every round, so that memory is read and not a cache. The error is that of the output against a dense
float64 softmax over what the cache really holds (a backend), or over the unquantized tensors (a baseline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.registry import Registry
from dba_plugins.bench.bandwidth import read_bandwidth
from dba_plugins.bench.baselines import baselines
from dba_plugins.bench.decode_case import DecodeCase
from dba_plugins.bench.machine import describe_machine
from dba_plugins.bench.report import Column, Report

DEFAULT_POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"

COLUMNS = (
    Column("threads", "threads"),
    Column("batch", "batch"),
    Column("length", "tokens", "{:,}"),
    Column("null", "null"),
    Column("name", "what"),
    Column("milliseconds", "ms"),
    Column("megabytes", "MB read", "{:.1f}"),
    Column("roofline_ms", "roofline ms", "{:.3f}"),
    Column("roofline_multiple", "times that", "{:.2f}"),
    Column("max_error", "max error", "{:.0e}"),
    Column("against_sdpa", "against SDPA", "{:.2f}x"),
    Column("against_fastest", "fastest fp32", "{:.2f}x"),
    Column("against_flex", "flex", "{:.2f}x"),
    Column("against_streaming", "streaming", "{:.1f}x"),
)


@attrs.frozen(kw_only=True)
class DecodeSettings:
    """What is measured. backends: names; empty takes every one that is installed."""

    shape: AttentionShape
    policy: KVCachePolicy = attrs.field(factory=lambda: KVCachePolicy.parse(DEFAULT_POLICY))
    batches: tuple[int, ...] = (1, 4)
    lengths: tuple[int, ...] = (4096, 32768, 131072)
    threads: tuple[int, ...] = ()
    backends: tuple[str, ...] = ()
    nulls: tuple[bool, ...] = (False,)
    repeats: int = 20
    flex: bool = True
    device: str = "cpu"


def measure_decode(
    settings: DecodeSettings,
    *,
    command: str,
    registry: Registry | None = None,
    on_case: Callable[[str], None] = lambda text: None,
) -> Report:
    """Every combination of threads, batch, length and null token. Raises UnsupportedError for a backend that
    was named and cannot do it, with its reasons.
    """
    device = torch.device(settings.device)
    registry = Registry.default() if registry is None else registry
    others, notes = baselines(device, flex=settings.flex)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in settings.threads or (before,):
            torch.set_num_threads(threads)
            bandwidth = read_bandwidth(device)
            for batch, length, null in _cases(settings):
                on_case(f"{threads} threads, batch {batch}, {length:,} tokens")
                case = DecodeCase(
                    shape=settings.shape,
                    policy=settings.policy,
                    device=device,
                    batch=batch,
                    length=length,
                    null=null,
                    backends=settings.backends,
                    repeats=settings.repeats,
                    registry=registry,
                )
                found = case.measure(others, bandwidth)
                rows += [{"threads": threads, "bandwidth": bandwidth, **row} for row in found]
                notes += [note for note in case.notes if note not in notes]
    finally:
        torch.set_num_threads(before)
    return Report(
        name="decode",
        title="Decoding one token from a quantized cache",
        command=command,
        columns=COLUMNS,
        rows=tuple(rows),
        machine=describe_machine(device),
        notes=(*_notes(settings), *notes),
    )


def _cases(settings: DecodeSettings) -> Iterator[tuple[int, int, bool]]:
    for batch in settings.batches:
        for length in settings.lengths:
            for null in settings.nulls:
                yield batch, length, null


def _notes(settings: DecodeSettings) -> tuple[str, ...]:
    shape = settings.shape
    return (
        f"KV policy {settings.policy.short}",
        f"{shape.n_heads} query heads, {shape.n_kv_heads} KV heads, Ds {shape.sem_head_dim}, "
        f"Dg {shape.geo_head_dim}, Dv {shape.v_head_dim}; medians of {settings.repeats} rounds in turn",
        "roofline: what reading the bytes takes at the bandwidth measured in the same run",
        "against SDPA: the faster of both fp32 SDPA rows; fastest fp32: of all fp32 rows; above 1 is faster",
        "ms: the median, and half the distance of its quartiles",
        "max error: against float64, of a backend over the same cache, of a baseline over its input",
    )
