"""How long one attention layer takes: prefill into a quantized cache, and long training sequences.

    dba bench prefill
    dba bench long

Random tensors, 8 heads, one sequence, interleaved repeats. `prefill`: a chunk after as many cached tokens,
each KV policy against fp16. `long`: forward and backward of the long-sequence path with the summarizer `mean`
against exact causal attention in the fastest form that a user could call (one scaled_dot_product_attention on
contiguous queries, keys and values).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.long_sequence.plan import LongSequencePlan
from dba_core.attention.prefill.chunk import prefill_attention
from dba_core.attention.projections import Heads
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape, Summarizer, SummarizerRequest
from dba_core.registry import Registry
from dba_plugins.bench.machine import describe_machine
from dba_plugins.bench.report import Column, Report
from dba_plugins.bench.timing import Timing, interleaved

N_HEADS = 8
CPU = torch.device("cpu")
FP16 = "ksem=fp16,kgeo=fp16,v=fp16"
QUANTIZED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
POLICIES = (FP16, QUANTIZED, f"{QUANTIZED},resid=128", f"{QUANTIZED},resid=1024")
#: The numbers of the long-sequence path that are measured: the defaults on a CPU.
MEM_BLOCK, LOCAL_WINDOW, Q_CHUNK = 64, 512, 128


@attrs.frozen(kw_only=True)
class Row:
    """ratio: the median by that of the reference, below 1 is faster."""

    name: str
    timing: Timing
    ratio: float


def measure_prefill(
    *,
    tokens: int = 2048,
    policies: Sequence[str] = POLICIES,
    repeats: int = 20,
    widths: tuple[int, int, int] = (32, 64, 64),
) -> list[Row]:
    """`tokens` after `tokens` cached ones; the first policy is the reference. widths: Ds, Dg, Dv."""
    first, second = (_heads(tokens, widths, seed=seed) for seed in (0, 1))
    calls: dict[str, Callable[[int], None]] = {}
    for text in policies:
        cache = LayerCache(
            k_sem=(N_HEADS, widths[0]),
            k_geo=(N_HEADS, widths[1]),
            v=(N_HEADS, widths[2]),
            batch=1,
            capacity=2 * tokens,
            policy=KVCachePolicy.parse(text),
            rollback=tokens,
        )
        prefill_attention(first, cache)
        calls[KVCachePolicy.parse(text).short] = _prefill_call(second, cache)
    return _rows(interleaved(calls, repeats=repeats, device=CPU))


def measure_long(
    *, tokens: int, repeats: int = 20, q_chunk: int = Q_CHUNK, widths: tuple[int, int, int] = (16, 48, 64)
) -> list[Row]:
    """Forward and backward over `tokens`; exact attention is the reference. widths: Ds, Dg, Dv."""
    heads = _heads(tokens, widths, seed=0)
    parts = [t.requires_grad_() for t in (heads.q_sem, heads.q_geo, heads.k_sem, heads.k_geo, heads.v)]
    packed = [
        torch.cat(pair, dim=-1).detach().requires_grad_()
        for pair in ((heads.q_sem, heads.q_geo), (heads.k_sem, heads.k_geo))
    ]
    packed.append(heads.v.detach().clone().requires_grad_())
    upstream = torch.randn(1, N_HEADS, tokens, widths[2])
    shape = AttentionShape(
        d_model=sum(widths),
        n_heads=N_HEADS,
        n_kv_heads=N_HEADS,
        sem_head_dim=widths[0],
        geo_head_dim=widths[1],
        v_head_dim=widths[2],
    )
    request = SummarizerRequest(shape=shape, mem_block=MEM_BLOCK)
    mean = cast("Summarizer", Registry.default().select("summarizer", "mean", request).build())

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

    plan = LongSequencePlan(length=tokens, mem_block=MEM_BLOCK, local_window=LOCAL_WINDOW, q_chunk=q_chunk)

    def long(*tensors: Tensor) -> Tensor:
        return long_sequence_attention(
            Heads(*tensors),
            plan=plan,
            summarizer=mean,
            null=None,
        )

    calls = {
        "exact": _training_call(exact, packed, upstream),
        f"memory tokens, chunks of {q_chunk}": _training_call(long, parts, upstream),
    }
    return _rows(interleaved(calls, repeats=repeats, device=CPU))


def _heads(tokens: int, widths: tuple[int, int, int], *, seed: int) -> Heads:
    """Random heads [1, 8, tokens, width], queries scaled."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int, scale: float = 1.0) -> Tensor:
        return torch.randn(1, N_HEADS, tokens, width, generator=generator) * scale

    sem, geo, v = widths
    return Heads(
        q_sem=draw(sem, sem**-0.5), q_geo=draw(geo, geo**-0.5), k_sem=draw(sem), k_geo=draw(geo), v=draw(v)
    )


def _prefill_call(heads: Heads, cache: LayerCache) -> Callable[[int], None]:
    before = cache.length

    def call(_round: int) -> None:
        prefill_attention(heads, cache)
        cache.truncate(before)

    return call


def _training_call(
    attention: Callable[..., Tensor], tensors: Sequence[Tensor], upstream: Tensor
) -> Callable[[int], None]:
    def call(_round: int) -> None:
        for tensor in tensors:
            tensor.grad = None
        attention(*tensors).backward(upstream)  # type: ignore[no-untyped-call]

    return call


def _rows(timings: dict[str, Timing]) -> list[Row]:
    reference = next(iter(timings.values())).median_ms
    return [
        Row(name=name, timing=timing, ratio=timing.median_ms / reference) for name, timing in timings.items()
    ]


def prefill_report(*, tokens: int, policies: Sequence[str], repeats: int, command: str) -> Report:
    """`measure_prefill` as a report."""
    rows = measure_prefill(tokens=tokens, policies=policies, repeats=repeats)
    return _report("prefill", f"{tokens:,} tokens after {tokens:,} cached ones", {tokens: rows}, command)


def long_report(*, tokens: Sequence[int], q_chunk: int, repeats: int, command: str) -> Report:
    """`measure_long` at several lengths as a report."""
    found = {length: measure_long(tokens=length, repeats=repeats, q_chunk=q_chunk) for length in tokens}
    return _report("long", "Long training sequences, forward and backward of one layer", found, command)


def _report(name: str, title: str, found: dict[int, list[Row]], command: str) -> Report:
    return Report(
        name=name,
        title=title,
        command=command,
        columns=(
            Column("threads", "threads"),
            Column("tokens", "tokens", "{:,}"),
            Column("name", "what"),
            Column("ms", "ms", "{:.1f}"),
            Column("spread", "quartiles"),
            Column("ratio", "of the first", "{:.2f}x"),
            Column("speedup", "times as fast", "{:.2f}x"),
        ),
        rows=tuple(
            {
                "threads": torch.get_num_threads(),
                "tokens": tokens,
                "name": row.name,
                **row.timing.fields,
                "ratio": row.ratio,
                "speedup": 1 / row.ratio,
            }
            for tokens, rows in found.items()
            for row in rows
        ),
        machine=describe_machine(CPU),
        notes=(
            f"{N_HEADS} heads, one sequence, random tensors; medians in turn; compared with the first row",
        ),
    )
