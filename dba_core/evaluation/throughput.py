"""Tokens per second of prefill and of decode under a KV-cache policy.

A sequence of `context` tokens is put into an empty cache in one piece (prefill), then `decode_tokens` tokens
follow one by one (decode). Once to warm up, then `repeats` times; the medians count.
"""

from __future__ import annotations

import statistics
import time

import attrs
import torch

from dba_core.cache.kv_cache import KVCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import ConfigError
from dba_core.model.language_model import LanguageModel, inference


@attrs.frozen(kw_only=True)
class Throughput:
    """Tokens per second of all sequences of the batch together, and of how many tokens of each sequence."""

    prefill: float
    decode: float
    prefill_tokens: int
    decode_tokens: int


def measure_throughput(
    model: LanguageModel,
    *,
    batch: int,
    context: int,
    policy: KVCachePolicy | str,
    decode_tokens: int = 32,
    repeats: int = 3,
) -> Throughput:
    """Measure with random tokens (their values cost nothing) of a fixed seed."""
    counts = {"batch": batch, "context": context, "decode_tokens": decode_tokens, "repeats": repeats}
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}={value} measures nothing; give at least 1")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch, context + decode_tokens), generator=generator)
    tokens = tokens.to(model.device)
    with inference(model):
        cache = model.new_cache(batch=batch, capacity=context + decode_tokens, policy=policy, rollback=0)
        times = [_once(model, tokens, cache, context) for _ in range(1 + repeats)][1:]
    prefill, decode = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    return Throughput(
        prefill=batch * context / prefill,
        decode=batch * decode_tokens / decode,
        prefill_tokens=context,
        decode_tokens=decode_tokens,
    )


def _once(model: LanguageModel, tokens: torch.Tensor, cache: KVCache, context: int) -> tuple[float, float]:
    """Seconds of prefill and of all decode steps."""
    cache.reset()
    start = _now(model.device)
    model(tokens[:, :context], cache=cache)
    middle = _now(model.device)
    for t in range(context, tokens.shape[1]):
        model(tokens[:, t : t + 1], cache=cache)
    return middle - start, _now(model.device) - middle


def _now(device: torch.device) -> float:
    """The time after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
