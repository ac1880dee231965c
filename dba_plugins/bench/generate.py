"""Whole models beside transformers.

Whole-model decoding beside Hugging Face transformers, on models of the same size.

Both models have random float32 weights, the same width, depth, feed-forward, vocabulary and number of
parameters; ours divides each head of d_model / n_heads channels into a quarter semantic and three quarters
geometric ones. The caches are filled with random keys and values instead of by a prefill of a long text,
which would take minutes and does not change what a token costs. All candidates take turns in one process;
each one goes back to the same cache before its next turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import GenerationConfig
from dba_core.errors import ConfigError, UsageError
from dba_core.hookspecs import hookimpl
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.measured import measured, repeats, threads

if TYPE_CHECKING:
    from torch import nn

    from dba_core.cache.kv_cache import KVCache
    from dba_core.model.language_model import LanguageModel

POLICIES = (
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128",
    "ksem=fp32,kgeo=fp32,v=fp32",
)
TOLERANCE = 0.02  # how far apart the numbers of parameters may be
_FILL = 4096  # tokens that are appended at once


@attrs.frozen(kw_only=True)
class GenerateBench:
    """Sizes of both models, and what is measured."""

    batch: tuple[int, ...] = option((1, 4), help="Sequences.", least=1)
    length: tuple[int, ...] = option((1024, 8192, 32768), help="Cached tokens of each.", least=1)
    d_model: int = option(512, help="Width of both models.", least=8)
    layers: int = option(8, help="Layers.", least=1)
    heads: int = option(8, help="Heads.", least=1)
    d_ff: int = option(1408, help="Width of the feed-forward part.", least=1)
    vocab_size: int = option(32000, help="Tokens of the vocabulary.", least=2)
    new_tokens: int = option(8, help="Tokens of a turn.", least=1)
    kv_policy: tuple[str, ...] = option(
        (), help="Formats of our cache; may be repeated.", unit="POLICY", repeated=True, offers="kv_policy"
    )
    threads: tuple[int, ...] = threads()
    repeats: int = repeats(20)

    def __attrs_post_init__(self) -> None:
        for name, values in {"batch": self.batch, "length": self.length}.items():
            if not values:
                raise UsageError(f"no {name} to measure; give at least one")

    @property
    def model(self) -> ModelConfig:
        """Ours; the Llama takes the same numbers."""
        head = self.d_model // self.heads
        sem = head // 4
        attention = AttentionConfig(
            n_heads=self.heads, sem_head_dim=sem, geo_head_dim=head - sem, v_head_dim=head
        )
        return ModelConfig(
            vocab_size=self.vocab_size,
            context=max(self.length),
            n_layers=self.layers,
            d_model=self.d_model,
            d_ff=self.d_ff,
            attention=attention,
            train_long_seq=LongSequenceConfig(enabled=False),
        ).resolved()


def run(request: GenerateBench, reporter: Reporter) -> Report:
    """Tokens per second of our model and of a Llama with the same number of parameters.

    Needs transformers, which the extra 'bench' installs.

    \b
    Examples:
      dba bench generate
      dba bench generate --batch 1 --length 1024,8192 --threads 1
    """
    import torch

    from dba_plugins.bench.llama import build_llama

    ours = build_ours(request)
    llama = build_llama(request.model, seed=0)
    counts = parameter_counts(ours, llama)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in request.threads or (before,):
            torch.set_num_threads(threads)
            for batch in request.batch:
                for length in request.length:
                    reporter.note(f"{threads} threads, batch {batch}, {length:,} cached tokens ...")
                    rows += _case(request, ours, llama, threads=threads, batch=batch, length=length)
    finally:
        torch.set_num_threads(before)
    return measured(
        name="generate",
        title="Decoding with a whole model beside transformers",
        command=command_line("bench.generate", request),
        columns=(
            Column("threads", "threads"),
            Column("batch", "batch"),
            Column("length", "cached tokens", "{:,}"),
            Column("name", "what"),
            Column("backend", "decode backend"),
            Column("tokens_per_second", "tokens/s", "{:.1f}"),
            Column("ms", "ms per step", "{:.2f}"),
            Column("cache_megabytes", "cache MB", "{:.0f}"),
            Column("against_transformers", "against transformers", "{:.2f}x"),
        ),
        rows=tuple(rows),
        notes=(
            f"parameters: ours {counts[0]:,}, Llama {counts[1]:,}; {request.layers} layers of width "
            f"{request.d_model}, {request.heads} heads, float32, random weights, greedy",
            f"medians of {request.repeats} turns of {request.new_tokens} tokens; caches filled with random "
            "keys and values",
            "against transformers: the faster of its two caches",
        ),
        draw=_draw,
    )


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.charts import generate_chart

    generate_chart(path, report)


def build_ours(request: GenerateBench) -> LanguageModel:
    """Decoupled attention with the causal gate and the decode backend that `auto` takes; random weights."""
    from dba_core.model.language_model import LanguageModel

    plugins = PluginChoices(
        gate=PluginChoice("causal"),
        null_token=PluginChoice("none"),
        decode_backend=PluginChoice("auto"),
    )
    return LanguageModel(request.model, plugins=plugins).eval()


def parameter_counts(ours: nn.Module, llama: nn.Module) -> tuple[int, int]:
    """Parameters of both. Raises ConfigError where they are more than 2% apart: no fair comparison."""
    first, second = (sum(p.numel() for p in model.parameters()) for model in (ours, llama))
    if abs(first - second) > TOLERANCE * second:
        raise ConfigError(
            f"our model has {first:,} parameters and the Llama {second:,}, more than {TOLERANCE:.0%} apart; "
            "give heads that divide d_model evenly"
        )
    return first, second


def _case(
    request: GenerateBench, ours: LanguageModel, llama: Any, *, threads: int, batch: int, length: int
) -> list[dict[str, Any]]:
    import torch

    from dba_plugins.bench.llama import LlamaGenerator
    from dba_plugins.bench.timing import interleaved

    calls: dict[str, Callable[[int], None]] = {}
    sizes: dict[str, int] = {}
    backends: dict[str, str] = {}
    for text in request.kv_policy or POLICIES:
        policy = KVCachePolicy.parse(text)
        name = f"dba, {policy.short}"
        cache = filled_cache(ours, policy, batch=batch, length=length, room=request.new_tokens + 1)
        calls[name] = continuing(ours, cache, request.new_tokens)
        sizes[name], backends[name] = cache.nbytes, ours.decode_backends(cache)
    config = llama.config
    plain = 8 * batch * length * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    for name, static in (("transformers, static cache", True), ("transformers, dynamic cache", False)):
        generator = LlamaGenerator(
            llama, batch=batch, length=length, new_tokens=request.new_tokens, static=static
        )
        calls[name] = generator
        sizes[name] = plain
    timings = interleaved(calls, repeats=request.repeats, device=torch.device("cpu"), warmup=1)
    fastest = min(t.median_ms for name, t in timings.items() if name.startswith("transformers"))
    return [
        {
            "threads": threads,
            "batch": batch,
            "length": length,
            "name": name,
            "backend": backends.get(name),
            "kind": "backend" if name.startswith("dba") else "baseline",
            "ms": timing.median_ms / request.new_tokens,
            "low_ms": timing.low_ms / request.new_tokens,
            "high_ms": timing.high_ms / request.new_tokens,
            "tokens_per_second": batch * request.new_tokens / timing.median_ms * 1e3,
            "cache_megabytes": sizes[name] / 1e6,
            "against_transformers": fastest / timing.median_ms,
        }
        for name, timing in timings.items()
    ]


def filled_cache(
    model: LanguageModel, policy: KVCachePolicy, *, batch: int, length: int, room: int
) -> KVCache:
    """A cache with `length` random tokens in every layer and room for `room` more."""
    import torch

    cache = model.new_cache(batch=batch, capacity=length + room, policy=policy, rollback=max(room, 64))
    generator = torch.Generator().manual_seed(0)
    for attention, layer in zip(model.attentions, cache.layers, strict=True):
        writer = attention.decode_backend(layer).writer
        for start in range(0, length, _FILL):
            count = min(_FILL, length - start)
            k_sem, k_geo, v = (
                torch.randn(batch, spec.n_heads, count, spec.head_dim, generator=generator)
                for spec in layer.specs
            )
            layer.append(k_sem, k_geo, v, writer=writer)
    return cache


def continuing(model: LanguageModel, cache: KVCache, new_tokens: int) -> Callable[[int], None]:
    """Greedy `generate` from the filled cache and back to it."""
    from dba_core.generation.loop import generate
    from dba_plugins.bench.llama import FIRST

    length, prompts = cache.length, [[FIRST]] * cache.batch
    config = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0)

    def call(_round: int) -> None:
        generate(model, prompts, config, cache=cache)
        cache.truncate(length)

    return call


@hookimpl
def dba_command() -> Command[GenerateBench]:
    return Command(
        name="bench.generate",
        contract=1,
        summary=summary_of(__doc__),
        request_class=GenerateBench,
        run=run,
        draws=True,
    )
