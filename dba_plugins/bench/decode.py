"""One token over a long cache, beside the alternatives.

Every backend beside the baselines, over a cache of each length; on a GPU see `decode_gpu`. Caches are filled
with N(0,1) keys and values; queries give scores of spread 1. Candidates take turns in one process. Each has
several copies of its tensors, more than the last-level cache holds, and takes the next copy in every round,
so that memory is read and not a cache. The error is that of the output against a dense float64 softmax over
what the cache really holds (a backend), or over the unquantized tensors (a baseline).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.errors import UsageError
from dba_core.hookspecs import hookimpl
from dba_core.registry import Registry
from dba_core.report import Column, Report, Reporter
from dba_core.runs.choosing import check_plugins
from dba_plugins.bench.measured import measured, repeats, threads

if TYPE_CHECKING:
    from dba_plugins.bench.decode_gpu import GpuDecodeSettings

NULLS = {"off": (False,), "on": (True,), "both": (False, True)}

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
class DecodeBench:
    """What is measured. backend: names; empty takes every one that is installed."""

    batch: tuple[int, ...] = option((), help="Sequences.", without="1,4; on a GPU 1,8,64", least=1)
    length: tuple[int, ...] = option((4096, 32768, 131072), help="Cached tokens of each sequence.", least=1)
    heads: int | None = option(None, help="Query heads.", without="8; on a GPU 32", least=1)
    kv_heads: tuple[int, ...] = option((), help="Key/value heads.", without="as many; on a GPU 8,32", least=1)
    sem_dim: int = option(32, help="Semantic width of a head.", least=0)
    geo_dim: int = option(64, help="Geometric width of a head.", least=1)
    v_dim: tuple[int, ...] = option((), help="Width of a value.", without="64; on a GPU 64,128", least=1)
    kv_policy: str = option(
        "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
        help="Formats of the cache.",
        unit="POLICY",
        offers="kv_policy",
    )
    backend: tuple[str, ...] = option(
        (), help="Decode backends.", without="all that support the request", offers="backend_list"
    )
    null: str | None = option(
        None, help="With a null token.", without="off; on a GPU both", allowed=tuple(NULLS)
    )
    device: str = option("cpu", help="cpu, cuda or cuda:N.", offers="devices")
    budget_seconds: float = option(480, help="On a GPU: no case begins after that.", least=1)
    flex: bool = option(True, help="Compile FlexAttention, which takes a minute.")
    threads: tuple[int, ...] = threads()
    repeats: int = repeats(20)

    @property
    def policy(self) -> KVCachePolicy:
        return KVCachePolicy.parse(self.kv_policy)

    @property
    def shape(self) -> AttentionShape:
        """On a CPU. Raises UsageError for several of what it takes one of."""
        heads = self.heads or 8
        kv_heads, v_dim = _one("--kv-heads", self.kv_heads, heads), _one("--v-dim", self.v_dim, 64)
        _check_heads(heads, (kv_heads,))
        return AttentionShape(
            d_model=heads * (self.sem_dim + self.geo_dim),
            n_heads=heads,
            n_kv_heads=kv_heads,
            sem_head_dim=self.sem_dim,
            geo_head_dim=self.geo_dim,
            v_head_dim=v_dim,
        )


def run(request: DecodeBench, reporter: Reporter) -> Report:
    """Decode one token over caches of each length, beside float attention over the same tokens.

    \b
    Examples:
      dba bench decode --threads 1,2
      dba bench decode --batch 1 --length 8192 --heads 32 --kv-heads 8 --no-flex
      dba bench decode --backend cpu --null both --kv-policy "ksem=q8_0,kgeo=q8_0,v=q8_0,resid=128"
      dba bench decode --device cuda --budget-seconds 480 --save docs/benchmarks
    """
    check_plugins("decode_backend", request.backend)
    _ = request.policy  # a wrong one is refused before torch is there
    from dba_core.runs.device import resolve_device

    device = resolve_device(request.device)
    if not device.startswith("cuda"):
        _ = request.shape
        return measure_decode(request, reporter)
    settings = gpu_settings(request, device)
    from dba_plugins.bench.decode_gpu import measure_gpu_decode

    return measure_gpu_decode(settings, reporter, command=command_line("bench.decode", request))


def measure_decode(request: DecodeBench, reporter: Reporter) -> Report:
    """On the CPU: every combination of threads, batch, length and null token. Raises UnsupportedError for a
    backend that was named and cannot do it, with its reasons.
    """
    import torch

    from dba_plugins.bench.bandwidth import read_bandwidth
    from dba_plugins.bench.baselines import baselines
    from dba_plugins.bench.decode_case import DecodeCase

    device, registry = torch.device("cpu"), Registry.default()
    others, notes = baselines(device, flex=request.flex)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in request.threads or (before,):
            torch.set_num_threads(threads)
            bandwidth = read_bandwidth(device)
            for batch, length, null in _cases(request):
                reporter.note(f"{threads} threads, batch {batch}, {length:,} tokens ...")
                case = DecodeCase(
                    shape=request.shape,
                    policy=request.policy,
                    device=device,
                    batch=batch,
                    length=length,
                    null=null,
                    backends=request.backend,
                    repeats=request.repeats,
                    registry=registry,
                )
                found = case.measure(others, bandwidth)
                rows += [{"threads": threads, "bandwidth": bandwidth, **row} for row in found]
                notes += [note for note in case.notes if note not in notes]
    finally:
        torch.set_num_threads(before)
    return measured(
        name="decode",
        title="Decoding one token from a quantized cache",
        command=command_line("bench.decode", request),
        columns=COLUMNS,
        rows=rows,
        notes=(*_notes(request), *notes),
        draw=_draw,
    )


def gpu_settings(request: DecodeBench, device: str) -> GpuDecodeSettings:
    """What is left out has other defaults there."""
    from dba_plugins.bench.decode_gpu import GpuDecodeSettings

    heads, kv_heads = request.heads or 32, request.kv_heads or (8, 32)
    _check_heads(heads, kv_heads)
    return GpuDecodeSettings(
        policy=request.policy,
        heads=heads,
        kv_heads=kv_heads,
        sem_dim=request.sem_dim,
        geo_dim=request.geo_dim,
        v_dims=request.v_dim or (64, 128),
        batches=request.batch or (1, 8, 64),
        lengths=request.length,
        nulls=NULLS[request.null or "both"],
        backends=request.backend,
        repeats=request.repeats,
        budget_seconds=request.budget_seconds,
        device=device,
    )


def _one(option: str, given: tuple[int, ...], default: int) -> int:
    if len(given) > 1:
        raise UsageError(f"{option} takes one number on the CPU, got {','.join(map(str, given))}; give one")
    return given[0] if given else default


def _check_heads(heads: int, kv_heads: tuple[int, ...]) -> None:
    for each in kv_heads:
        if heads % each:
            raise UsageError(
                f"--heads {heads} is not a multiple of --kv-heads {each}; give one that divides it"
            )


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.charts import decode_chart

    decode_chart(path, report)


def _cases(request: DecodeBench) -> Iterator[tuple[int, int, bool]]:
    for batch in request.batch or (1, 4):
        for length in request.length:
            for null in NULLS[request.null or "off"]:
                yield batch, length, null


def _notes(request: DecodeBench) -> tuple[str, ...]:
    shape = request.shape
    return (
        f"KV policy {request.policy.short}",
        f"{shape.n_heads} query heads, {shape.n_kv_heads} KV heads, Ds {shape.sem_head_dim}, "
        f"Dg {shape.geo_head_dim}, Dv {shape.v_head_dim}; medians of {request.repeats} rounds in turn",
        "roofline: what reading the bytes takes at the bandwidth measured in the same run",
        "against SDPA: the faster of both fp32 SDPA rows; fastest fp32: of all fp32 rows; above 1 is faster",
        "ms: the median, and half the distance of its quartiles",
        "max error: against float64, of a backend over the same cache, of a baseline over its input",
    )


@hookimpl
def dba_command() -> Command[DecodeBench]:
    return Command(
        name="bench.decode",
        contract=1,
        summary=summary_of(__doc__),
        request_class=DecodeBench,
        run=run,
        draws=True,
    )
