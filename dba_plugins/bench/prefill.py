"""A chunk into a quantized cache, per KV policy.

A chunk after as many cached tokens through one attention layer, each policy against the first (fp16). Random
tensors, 8 heads, one sequence, candidates in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.hookspecs import hookimpl
from dba_core.registry import Registry
from dba_core.report import Report, Reporter
from dba_plugins.bench.measured import repeats

if TYPE_CHECKING:
    from dba_core.attention.projections import Heads
    from dba_core.cache.layer import LayerCache
    from dba_plugins.bench.one_layer import Row

FP16 = "ksem=fp16,kgeo=fp16,v=fp16"
QUANTIZED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
POLICIES = (FP16, QUANTIZED, f"{QUANTIZED},resid=128", f"{QUANTIZED},resid=1024")


@attrs.frozen(kw_only=True)
class PrefillBench:
    """How many tokens, under which policies."""

    tokens: int = option(2048, help="Tokens of the chunk, and cached ones.", least=1)
    kv_policy: tuple[str, ...] = option(
        (),
        help="May be repeated; the first one is compared with.",
        unit="POLICY",
        repeated=True,
        offers="kv_policy",
    )
    repeats: int = repeats(20)


def run(request: PrefillBench, reporter: Reporter) -> Report:
    """Time of TOKENS tokens after as many cached ones, each policy against the first (fp16).

    \b
    Examples:
      dba bench prefill
      dba bench prefill --tokens 512 --repeats 50
    """
    from dba_plugins.bench.one_layer import layer_report

    tokens = request.tokens
    rows = measure_prefill(tokens=tokens, policies=request.kv_policy or POLICIES, repeats=request.repeats)
    return layer_report(
        "prefill",
        f"{tokens:,} tokens after {tokens:,} cached ones",
        {tokens: rows},
        command=command_line("bench.prefill", request),
    )


def measure_prefill(
    *,
    tokens: int = 2048,
    policies: Sequence[str] = POLICIES,
    repeats: int = 20,
    widths: tuple[int, int, int] = (32, 64, 64),
) -> list[Row]:
    """`tokens` after `tokens` cached ones; the first policy is the reference. widths: Ds, Dg, Dv."""
    import torch

    from dba_core.attention.prefill import prefill_attention
    from dba_core.cache.layer import LayerCache
    from dba_plugins.bench.one_layer import N_HEADS, against_first, random_heads
    from dba_plugins.bench.timing import interleaved

    first, second = (random_heads(tokens, widths, seed=seed) for seed in (0, 1))
    calls: dict[str, Callable[[int], None]] = {}
    for text in policies:
        cache = LayerCache(
            registry=Registry.default(),
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
    return against_first(interleaved(calls, repeats=repeats, device=torch.device("cpu")))


def _prefill_call(heads: Heads, cache: LayerCache) -> Callable[[int], None]:
    from dba_core.attention.prefill import prefill_attention

    before = cache.length

    def call(_round: int) -> None:
        prefill_attention(heads, cache)
        cache.truncate(before)

    return call


@hookimpl
def dba_command() -> Command[PrefillBench]:
    return Command(
        name="bench.prefill",
        contract=1,
        summary=summary_of(__doc__),
        request_class=PrefillBench,
        run=run,
        draws=True,
    )
