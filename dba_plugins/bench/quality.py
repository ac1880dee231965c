"""The held-out loss of a trained model under each KV policy, against the bytes that a cached token costs.

    delta = mean nll under the policy - mean nll with an fp32 cache
    kl = mean KL(fp32 cache || policy), both in nats

The text goes through the cache in windows of the model's context, in chunks, which gives what decoding token
by token would (attention.prefill); all policies see the same windows. Standard errors are of the mean over
windows, of the difference itself, not of two losses. Called by `dba bench quality`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dba_core.cache.bytes import cache_bytes
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.evaluation.metrics import FidelityAccumulator, FidelityMetrics, exp_or_inf
from dba_core.generation.inference import inference
from dba_core.model.language_model import LanguageModel
from dba_plugins.bench.machine import describe_machine
from dba_plugins.bench.report import Column, Report

CHUNK = 512  # tokens that go into the cache at once

REFERENCE = "ksem=fp32,kgeo=fp32,v=fp32"
POLICIES = (
    REFERENCE,
    "ksem=fp16,kgeo=fp16,v=fp16",
    "ksem=q8_0@32,kgeo=q8_0@32,v=q8_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q8_0@32",
    "ksem=q8_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=nf4@32,kgeo=q8_0@32,v=nf4@32",
    "ksem=q8_0@32,kgeo=q4_0@32,v=q8_0@32",
    "ksem=q4_0@32,kgeo=q4_0@32,v=q4_0@32",
    "ksem=q4_0@128,kgeo=q4_0@128,v=q4_0@128",
    "ksem=nf4@32,kgeo=nf4@32,v=nf4@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32",
    "ksem=q4_0@32,kgeo=q4_0@32,v=q4_0@32,resid=32",
)


def measure_quality(
    model: LanguageModel,
    tokens: Tokens,
    *,
    policies: Sequence[str] = POLICIES,
    context: int,
    limit_tokens: int,
    name: str,
    command: str,
    on_policy: Callable[[str], None] = lambda text: None,
) -> Report:
    """Every policy; the fp32 cache is measured in any case and comes first.

    tokens: the first `limit_tokens` targets count, in windows of `context`. on_policy: called with each
    policy before it is measured. Raises ConfigError for a policy that cannot be read, DataError for too short
    a text.
    """
    wanted = list(dict.fromkeys(KVCachePolicy.parse(text) for text in (REFERENCE, *policies)))
    rows: list[dict[str, Any]] = []
    with inference(model):
        for policy in wanted:
            on_policy(policy.short)
            windows = _windows(model, tokens, policy, context=context, limit_tokens=limit_tokens)
            rows.append(_row(model, policy, windows, context=context))
    for row in rows:
        row["frontier"] = not any(_better(other, row) for other in rows)
        row["mark"] = "yes" if row["frontier"] else ""
    return Report(
        name="quality",
        title=f"Held-out loss of {name} under each KV policy",
        command=command,
        columns=_COLUMNS,
        rows=tuple(rows),
        machine=describe_machine(model.device),
        notes=(
            f"{rows[0]['tokens']:,} tokens in {rows[0]['windows']} windows of {context}, through the cache",
            "± is the standard error of the mean over windows; KL is from the fp32 cache",
            f"bytes per token: of a cache of {context} tokens, all layers, residual window included",
            "frontier: no other policy is as small with less KL, or smaller with as little; KL is never "
            "negative and less noisy than the loss, whose difference may have either sign by chance",
        ),
    )


def _windows(
    model: LanguageModel, tokens: Tokens, policy: KVCachePolicy, *, context: int, limit_tokens: int
) -> list[tuple[FidelityMetrics, float]]:
    """Of every window the figures against the fp32 cache and the mean nll of the fp32 cache."""
    exact_policy = KVCachePolicy.parse(REFERENCE)
    windows: list[tuple[FidelityMetrics, float]] = []
    for x, y in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=1):
        length = x.shape[1]
        exact = model.new_cache(batch=1, capacity=length, policy=exact_policy, rollback=0)
        cache = model.new_cache(batch=1, capacity=length, policy=policy, rollback=0)
        accumulator = FidelityAccumulator()
        nats = 0.0
        for start in range(0, length, CHUNK):
            part = x[:, start : start + CHUNK].to(model.device)
            targets = y[:, start : start + CHUNK].to(model.device)
            reference = model(part, cache=exact)  # [1, T, V]
            accumulator.update(reference, model(part, cache=cache), targets)
            nats += _nats(reference, targets)
        windows.append((accumulator.result(), nats / length))
    return windows


def _nats(logits: Tensor, targets: Tensor) -> float:
    """[1,T,V], [1,T] -> the sum of -log p(target)."""
    losses = logits.double().log_softmax(-1).gather(-1, targets[..., None])
    return -float(losses.sum())


def _row(
    model: LanguageModel,
    policy: KVCachePolicy,
    windows: Sequence[tuple[FidelityMetrics, float]],
    *,
    context: int,
) -> dict[str, Any]:
    """windows: the figures of each, and its mean nll with the fp32 cache."""
    figures = [metrics for metrics, _ in windows]
    count = torch.tensor([each.tokens for each in figures], dtype=torch.float64)
    weights = count / count.sum()
    delta, kl, reference = (
        torch.tensor(values, dtype=torch.float64)
        for values in (
            [each.delta_nll for each in figures],
            [each.kl for each in figures],
            [nll for _, nll in windows],
        )
    )
    mean = float((weights * delta).sum())
    return {
        "policy": policy.short,
        "bytes_per_token": sum(cache_bytes(each.shape, 1, policy, context) for each in model.attentions)
        / context,
        "nll": float((weights * reference).sum()) + mean,
        "delta_nll": mean,
        "std_error": _std_error(delta),
        "kl": float((weights * kl).sum()),
        "kl_std_error": _std_error(kl),
        "perplexity_increase": exp_or_inf(mean) - 1.0,
        "tokens": int(count.sum()),
        "windows": len(windows),
    }


def _std_error(values: Tensor) -> float:
    """Of the mean; NaN for a single window."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _better(other: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether `other` leaves no reason to choose `row`."""
    no_worse = other["bytes_per_token"] <= row["bytes_per_token"] and other["kl"] <= row["kl"]
    return no_worse and (other["bytes_per_token"], other["kl"]) != (row["bytes_per_token"], row["kl"])


_COLUMNS = (
    Column("policy", "policy"),
    Column("bytes_per_token", "bytes per token", "{:,.1f}"),
    Column("nll", "nats per token", "{:.4f}"),
    Column("delta_nll", "against fp32", "{:+.5f}"),
    Column("std_error", "±", "{:.5f}"),
    Column("kl", "KL", "{:.6f}"),
    Column("kl_std_error", "±", "{:.6f}"),
    Column("perplexity_increase", "perplexity", "{:+.2%}"),
    Column("mark", "frontier"),
)
