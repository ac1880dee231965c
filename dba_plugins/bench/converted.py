"""A converted model beside its source.

A converted model, its source, and the source in Hugging Face transformers:

    prefill   a prompt of real text goes into an empty cache, and one token comes out
    decode    tokens after a filled cache, greedy

All three compute the source's function, ours with less cache; float32 weights, batch 1. All candidates take
turns in one process; each goes back to the same cache before its next turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.command import Command, argument, command_line, group, option, summary_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import GenerationConfig
from dba_core.errors import DataError, UsageError
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_core.runs.choosing import RunChoice
from dba_plugins.bench.measured import measured, repeats, threads

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel
    from dba_plugins.bench.timing import Timing

FP16 = "ksem=fp16,kgeo=fp16,v=fp16"


@attrs.frozen(kw_only=True)
class ConvertedBench:
    """source: what the run was converted from. prompt: tokens of the prefill, and cached tokens when decoding
    begins.
    """

    source: Path = argument()
    run: RunChoice = group()
    prompt: tuple[int, ...] = option((512, 2000), help="Tokens of the prompt.", least=2)
    new_tokens: int = option(16, help="Tokens of a turn.", least=1)
    threads: tuple[int, ...] = threads()
    repeats: int = repeats(20)

    def __attrs_post_init__(self) -> None:
        if not self.prompt:
            raise UsageError("no prompt to measure; give 1 or more")


def run(request: ConvertedBench, reporter: Reporter) -> Report:
    """Tokens per second of RUN's model, of the SOURCE that it was converted from, and of transformers.

    SOURCE is what `dba convert` was given. Needs transformers, which the extra 'bench' installs.

    \b
    Examples:
      dba bench converted model.gguf runs/smol
      dba bench converted model.gguf runs/smol --prompt 512 --threads 1,2
    """
    chosen = request.run.load(reporter)
    import numpy as np
    import torch

    from dba_core.model.pretrained import open_pretrained
    from dba_core.runs.evaluate import text_of
    from dba_plugins.bench.llama import llama_of

    source = request.source
    loaded = open_pretrained(source)
    if loaded.config.vocab_size != chosen.model.config.vocab_size:
        raise UsageError(
            f"{source} has {loaded.config.vocab_size} tokens and {chosen.folder.path} "
            f"{chosen.model.config.vocab_size}: the one was not converted from the other"
        )
    text = np.asarray(text_of(chosen, None)[1]).astype(np.int64)
    if len(text) < max(request.prompt):
        raise DataError(f"the run's text has {len(text)} tokens; give a --prompt of at most that")
    llama, original = llama_of(loaded), loaded.build()
    fp16 = KVCachePolicy.parse(FP16)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in request.threads or (before,):
            torch.set_num_threads(threads)
            for length in request.prompt:
                reporter.note(f"{threads} threads, {length:,} tokens ...")
                ours = {
                    "source in dba, fp16 cache": (original, fp16),
                    "converted, fp16 cache": (chosen.model, fp16),
                    f"converted, {chosen.kv_policy.short}": (chosen.model, chosen.kv_policy),
                }
                prompt = text[:length].tolist()
                rows += _rows("prefill", _prefill(llama, ours, prompt, request), length, length, threads)
                rows += _rows(
                    "decode", _decode(llama, ours, prompt, request), request.new_tokens, length, threads
                )
    finally:
        torch.set_num_threads(before)
    return measured(
        name="converted",
        title="A converted model beside its source",
        command=command_line("bench.converted", request),
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=(
            f"{chosen.config.name}, {chosen.model.n_parameters:,} parameters, float32 weights, batch 1, "
            f"greedy; medians of {request.repeats} turns",
            f"decode: {request.new_tokens} tokens a turn; transformers' caches hold random keys there, ours "
            "the prompt's",
            "cache: keys and values of the prompt; against transformers: the fastest of its rows",
        ),
    )


_COLUMNS = (
    Column("threads", "threads"),
    Column("phase", "phase"),
    Column("length", "prompt", "{:,}"),
    Column("name", "what"),
    Column("tokens_per_second", "tokens/s", "{:.1f}"),
    Column("ms", "ms", "{:.1f}"),
    Column("cache_megabytes", "cache MB", "{:.1f}"),
    Column("against_transformers", "against transformers", "{:.2f}x"),
)
_Ours = dict[str, "tuple[LanguageModel, KVCachePolicy]"]
_Timed = tuple[dict[str, "Timing"], dict[str, float]]


def _prefill(llama: Any, ours: _Ours, prompt: list[int], request: ConvertedBench) -> _Timed:
    """Times of a prompt and one token, and megabytes of the caches."""
    import torch

    from dba_core.generation.loop import generate
    from dba_plugins.bench.timing import interleaved

    calls: dict[str, Callable[[int], None]] = {}
    sizes: dict[str, float] = {}
    once = GenerationConfig(max_new_tokens=1, temperature=0.0)
    for name, (model, policy) in ours.items():
        cache = model.new_cache(batch=1, capacity=len(prompt) + 1, policy=policy)

        def call(_round: int, model: LanguageModel = model, cache: Any = cache) -> None:
            generate(model, [prompt], once, cache=cache)
            cache.truncate(0)

        calls[name], sizes[name] = call, _megabytes(model, policy, len(prompt))
    tokens = torch.tensor([prompt])

    def transformers(_round: int) -> None:
        with torch.no_grad():
            llama.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
            )

    calls["transformers"], sizes["transformers"] = transformers, _llama_megabytes(llama, len(prompt))
    return interleaved(calls, repeats=request.repeats, device=torch.device("cpu"), warmup=1), sizes


def _decode(llama: Any, ours: _Ours, prompt: list[int], request: ConvertedBench) -> _Timed:
    """Times of `new_tokens` tokens after the prompt."""
    import torch

    from dba_core.generation.loop import prefill
    from dba_core.model.language_model import inference
    from dba_plugins.bench.generate import continuing
    from dba_plugins.bench.llama import LlamaGenerator
    from dba_plugins.bench.timing import interleaved

    calls: dict[str, Callable[[int], None]] = {}
    sizes: dict[str, float] = {}
    length, new = len(prompt), request.new_tokens
    for name, (model, policy) in ours.items():
        cache = model.new_cache(batch=1, capacity=length + new + 1, policy=policy, rollback=max(64, new + 1))
        with inference(model):
            prefill(model, [prompt], cache)
        calls[name], sizes[name] = continuing(model, cache, new), _megabytes(model, policy, length)
    for name, static in (("transformers, static cache", True), ("transformers, dynamic cache", False)):
        calls[name] = LlamaGenerator(llama, batch=1, length=length, new_tokens=new, static=static)
        sizes[name] = _llama_megabytes(llama, length)
    return interleaved(calls, repeats=request.repeats, device=torch.device("cpu"), warmup=1), sizes


def _rows(phase: str, timed: _Timed, tokens: int, length: int, threads: int) -> list[dict[str, Any]]:
    timings, sizes = timed
    fastest = min(t.median_ms for name, t in timings.items() if name.startswith("transformers"))
    return [
        {
            "threads": threads,
            "phase": phase,
            "length": length,
            "name": name,
            **timing.fields,
            "tokens_per_second": tokens / timing.median_ms * 1e3,
            "cache_megabytes": sizes[name],
            "against_transformers": fastest / timing.median_ms,
        }
        for name, timing in timings.items()
    ]


def _megabytes(model: LanguageModel, policy: KVCachePolicy, tokens: int) -> float:
    """Of a cache of so many tokens, residual window included."""
    from dba_core.cache.bytes import cache_bytes

    return sum(cache_bytes(layer.shape, 1, policy, tokens) for layer in model.attentions) / 1e6


def _llama_megabytes(llama: Any, tokens: int) -> float:
    """float32 keys and values."""
    config = llama.config
    return 8e-6 * float(tokens * config.num_hidden_layers * config.num_key_value_heads * config.head_dim)


@hookimpl
def dba_command() -> Command[ConvertedBench]:
    return Command(
        name="bench.converted",
        contract=1,
        summary=summary_of(__doc__),
        request_class=ConvertedBench,
        run=run,
    )
