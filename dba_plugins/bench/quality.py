"""Held-out loss of a run per KV policy.

The loss of a trained model under each policy, against the bytes that a cached token costs:

    delta = mean nll under the policy - mean nll with an fp32 cache
    kl = mean KL(fp32 cache || policy), both in nats

The text goes through the cache in windows of the model's context, in chunks, which gives what decoding token
by token would (attention.prefill); all policies see the same windows. Standard errors are of the mean over
windows, of the difference itself, not of two losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.command import Command, command_line, group, option, summary_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_core.runs.choosing import RunChoice, check_data
from dba_plugins.bench.measured import measured

if TYPE_CHECKING:
    from torch import Tensor

    from dba_core.data.tokenizers import Tokens
    from dba_core.evaluation.metrics import FidelityMetrics
    from dba_core.model.language_model import LanguageModel

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


@attrs.frozen(kw_only=True)
class QualityBench:
    """Whose loss, on what text, under which policies."""

    run: RunChoice = group()
    data: str | None = option(
        None, help="Other text, all of it.", without="the run's held-out part", unit="TEXT", offers="corpora"
    )
    tokens: int = option(16384, help="Tokens of it.", least=1)
    context: int | None = option(None, help="Tokens of a window.", without="the run's context", least=1)
    kv_policy: tuple[str, ...] = option(
        (),
        help="May be repeated.",
        without="a dozen from fp32 to all-q4",
        unit="POLICY",
        repeated=True,
        offers="kv_policy",
    )


def run(request: QualityBench, reporter: Reporter) -> Report:
    """The loss of RUN's model with its cache in each policy, and what a token then costs.

    \b
    Examples:
      dba bench quality latest
      dba bench quality latest --tokens 65536 --context 512 --plot
    """
    check_data(request.data)
    loaded = request.run.load(reporter)
    from dba_core.runs.evaluate import text_of

    return measure_quality(
        loaded.model,
        text_of(loaded, request.data)[1],
        policies=request.kv_policy or POLICIES,
        context=request.context or loaded.config.model.context,
        limit_tokens=request.tokens,
        name=loaded.config.name,
        command=command_line("bench.quality", request),
        reporter=reporter,
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
    reporter: Reporter,
) -> Report:
    """Every policy; the fp32 cache is measured in any case and comes first.

    tokens: the first `limit_tokens` targets count, in windows of `context`. Raises ConfigError for a
    policy that cannot be read, DataError for too short a text.
    """
    from dba_core.model.language_model import inference

    wanted = list(dict.fromkeys(KVCachePolicy.parse(text) for text in (REFERENCE, *policies)))
    rows: list[dict[str, Any]] = []
    with inference(model):
        for policy in wanted:
            reporter.note(f"{policy.short} ...")
            windows = _windows(model, tokens, policy, context=context, limit_tokens=limit_tokens)
            rows.append(_row(model, policy, windows, context=context))
    for row in rows:
        row["frontier"] = not any(_better(other, row) for other in rows)
        row["mark"] = "yes" if row["frontier"] else ""
    return measured(
        name="quality",
        title=f"Held-out loss of {name} under each KV policy",
        command=command,
        columns=_COLUMNS,
        rows=tuple(rows),
        device=str(model.device),
        draw=_draw,
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
    from dba_core.data.batches import held_out_windows
    from dba_core.evaluation.metrics import FidelityAccumulator

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
    import torch

    from dba_core.cache.bytes import cache_bytes
    from dba_core.evaluation.metrics import exp_or_inf

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


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.quality_chart import quality_chart

    quality_chart(path, report)


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


@hookimpl
def dba_command() -> Command[QualityBench]:
    return Command(
        name="bench.quality",
        contract=1,
        summary=summary_of(__doc__),
        request_class=QualityBench,
        run=run,
        draws=True,
    )
