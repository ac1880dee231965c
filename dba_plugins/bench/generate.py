"""`dba bench generate`: whole-model decoding beside Hugging Face transformers, on models of the same size.

Both models have random float32 weights, the same width, depth, feed-forward, vocabulary and number of
parameters; ours divides each head of d_model / n_heads channels into a quarter semantic and three quarters
geometric ones. The caches are filled with random keys and values instead of by a prefill of a long text,
which would take minutes and does not change what a token costs. All candidates take turns in one process;
each one goes back to the same cache before its next turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from dba_core.cache.kv_cache import KVCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.generation import GenerationConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import ConfigError, UsageError
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.bench.llama import FIRST, LlamaGenerator, build_llama
from dba_plugins.bench.machine import describe_machine
from dba_plugins.bench.report import Column, Report
from dba_plugins.bench.timing import interleaved

POLICIES = (
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128",
    "ksem=fp32,kgeo=fp32,v=fp32",
)
CPU = torch.device("cpu")
TOLERANCE = 0.02  # how far apart the numbers of parameters may be
_FILL = 4096  # tokens that are appended at once


@attrs.frozen(kw_only=True)
class GenerateSettings:
    """Sizes of both models, and what is measured."""

    d_model: int = 512
    n_layers: int = 8
    n_heads: int = 8
    d_ff: int = 1408
    vocab_size: int = 32000
    batches: tuple[int, ...] = (1, 4)
    lengths: tuple[int, ...] = (1024, 8192, 32768)
    threads: tuple[int, ...] = ()
    policies: tuple[str, ...] = POLICIES
    backend: str = "auto"
    new_tokens: int = 16
    repeats: int = 20

    def __attrs_post_init__(self) -> None:
        numbers = {"batch": self.batches, "length": self.lengths, "new tokens": (self.new_tokens,)}
        for name, values in {**numbers, "policy": self.policies}.items():
            if not values:
                raise UsageError(f"no {name} to measure; give at least one")
        for name, counts in {**numbers, "threads": self.threads}.items():
            if counts and min(counts) < 1:
                raise UsageError(f"{name} {min(counts)} cannot be measured; give 1 or more")

    @property
    def model(self) -> ModelConfig:
        """Ours; the Llama takes the same numbers."""
        head = self.d_model // self.n_heads
        sem = head // 4
        attention = AttentionConfig(
            n_heads=self.n_heads, sem_head_dim=sem, geo_head_dim=head - sem, v_head_dim=head
        )
        return ModelConfig(
            vocab_size=self.vocab_size,
            context=max(self.lengths),
            n_layers=self.n_layers,
            d_model=self.d_model,
            d_ff=self.d_ff,
            attention=attention,
            train_long_seq=LongSequenceConfig(enabled=False),
        ).resolved()


def measure_generate(
    settings: GenerateSettings, *, command: str, on_case: Callable[[str], None] = lambda text: None
) -> Report:
    """Every combination of threads, batch and length. Raises UnsupportedError without transformers."""
    ours = build_ours(settings)
    llama = build_llama(settings.model, seed=0)
    counts = parameter_counts(ours, llama)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in settings.threads or (before,):
            torch.set_num_threads(threads)
            for batch in settings.batches:
                for length in settings.lengths:
                    on_case(f"{threads} threads, batch {batch}, {length:,} cached tokens")
                    rows += _case(settings, ours, llama, threads=threads, batch=batch, length=length)
    finally:
        torch.set_num_threads(before)
    return Report(
        name="generate",
        title="Decoding with a whole model beside transformers",
        command=command,
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
        machine=describe_machine(CPU),
        notes=(
            f"parameters: ours {counts[0]:,}, Llama {counts[1]:,}; {settings.n_layers} layers of width "
            f"{settings.d_model}, {settings.n_heads} heads, float32, random weights, greedy",
            f"medians of {settings.repeats} turns of {settings.new_tokens} tokens; caches filled with random "
            "keys and values",
            "against transformers: the faster of its two caches",
        ),
    )


def build_ours(settings: GenerateSettings) -> LanguageModel:
    """Decoupled attention with the causal gate and the decode backend of the settings; random weights."""
    plugins = PluginChoices(
        gate=PluginChoice("causal"),
        null_token=PluginChoice("none"),
        decode_backend=PluginChoice(settings.backend),
    )
    return LanguageModel(settings.model, plugins=plugins).eval()


def parameter_counts(ours: torch.nn.Module, llama: torch.nn.Module) -> tuple[int, int]:
    """Parameters of both. Raises ConfigError where they are more than 2% apart: no fair comparison."""
    first, second = (sum(p.numel() for p in model.parameters()) for model in (ours, llama))
    if abs(first - second) > TOLERANCE * second:
        raise ConfigError(
            f"our model has {first:,} parameters and the Llama {second:,}, more than {TOLERANCE:.0%} apart; "
            "give heads that divide d_model evenly"
        )
    return first, second


def _case(
    settings: GenerateSettings, ours: LanguageModel, llama: Any, *, threads: int, batch: int, length: int
) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[int], None]] = {}
    sizes: dict[str, int] = {}
    backends: dict[str, str] = {}
    for text in settings.policies:
        policy = KVCachePolicy.parse(text)
        name = f"dba, {policy.short}"
        cache = filled_cache(ours, policy, batch=batch, length=length, room=settings.new_tokens + 1)
        calls[name] = continuing(ours, cache, settings.new_tokens)
        sizes[name], backends[name] = cache.nbytes, ours.decode_backends(cache)
    config = llama.config
    plain = 8 * batch * length * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    for name, static in (("transformers, static cache", True), ("transformers, dynamic cache", False)):
        generator = LlamaGenerator(
            llama, batch=batch, length=length, new_tokens=settings.new_tokens, static=static
        )
        calls[name] = generator
        sizes[name] = plain
    timings = interleaved(calls, repeats=settings.repeats, device=CPU, warmup=1)
    fastest = min(t.median_ms for name, t in timings.items() if name.startswith("transformers"))
    return [
        {
            "threads": threads,
            "batch": batch,
            "length": length,
            "name": name,
            "backend": backends.get(name),
            "kind": "backend" if name.startswith("dba") else "baseline",
            "ms": timing.median_ms / settings.new_tokens,
            "low_ms": timing.low_ms / settings.new_tokens,
            "high_ms": timing.high_ms / settings.new_tokens,
            "tokens_per_second": batch * settings.new_tokens / timing.median_ms * 1e3,
            "cache_megabytes": sizes[name] / 1e6,
            "against_transformers": fastest / timing.median_ms,
        }
        for name, timing in timings.items()
    ]


def filled_cache(
    model: LanguageModel, policy: KVCachePolicy, *, batch: int, length: int, room: int
) -> KVCache:
    """A cache with `length` random tokens in every layer and room for `room` more."""
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
    length, prompts = cache.length, [[FIRST]] * cache.batch
    config = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0)

    def call(_round: int) -> None:
        generate(model, prompts, config, cache=cache)
        cache.truncate(length)

    return call
