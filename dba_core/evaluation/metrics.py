"""What is measured of a model: its loss on held-out tokens, the fidelity of a KV-cache policy, its speed.

    loss = mean over targets of -log p(target), nats     perplexity = exp(loss)
    bits per byte = sum of -log2 p / UTF-8 bytes of the targets

Fidelity is how far two sets of logits over the same tokens are apart, over all positions:

    nll = -log softmax(logits)[target]             delta_nll = mean nll - mean reference nll
    ppl_ratio = exp(delta_nll)                     max_abs_logit = max |logits - reference|
    kl = mean over positions of sum_v p_ref (log p_ref - log p), in nats

Everything is accumulated in float64 and kept per position. So is measured what a KV-cache policy costs: the
same tokens are decoded one by one with a cache of that policy and with an fp32 cache. Both go through the
model's decode path (T = 1), never through the training forward pass, so the figures hold for what generation
really does; an fp32 policy gives exactly zero.
"""

from __future__ import annotations

import math
import statistics
import time

import attrs
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.cache.kv_cache import KVCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokenizer, Tokens
from dba_core.errors import ConfigError, DataError
from dba_core.model.language_model import LanguageModel, inference

_CHUNK = 1 << 22  # logits that are widened to float64 at once
#: What is kept of every position.
_ROWS = ("tokens", "nll", "reference_nll", "delta_nll", "kl", "max_abs_logit")

Curve = npt.NDArray[np.float64]


@attrs.frozen(kw_only=True)
class HeldOut:
    """loss in nats per token; bits_per_byte is None where tokens have no text. tokens: targets predicted."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int


def held_out_loss(
    model: LanguageModel,
    tokens: Tokens,
    *,
    context: int,
    batch_size: int,
    limit_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> HeldOut:
    """The exact loss of the model on `tokens`, by the training forward pass over windows of `context` that do
    not overlap, `batch_size` at a time. Every token but the first is predicted once, from its own window.

    limit_tokens: only the first so many targets. tokenizer: gives the bytes for bits per byte; an
    end-of-text token that it adds has none.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    seen = 0
    with inference(model):
        for x, y in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=batch_size):
            logits = model(x.to(model.device)).float()  # [B, T, V]
            targets = y.flatten().to(model.device)
            total += F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").double().sum()
            seen += y.numel()
    nats = float(total)
    loss = nats / seen
    n_bytes: int | None = None
    if tokenizer is not None:
        special, targets_of = tokenizer.special, tokens[1 : seen + 1]
        ended = special.add_eos and int(targets_of[-1]) == special.eos[0]
        n_bytes = tokenizer.n_bytes(targets_of[:-1] if ended else targets_of)
    return HeldOut(
        loss=loss,
        perplexity=exp_or_inf(loss),
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else None,
        tokens=seen,
    )


@attrs.frozen(kw_only=True)
class FidelityMetrics:
    """The figures of fidelity; `tokens` is the number of positions that they are over."""

    delta_nll: float
    ppl_ratio: float
    max_abs_logit: float
    kl: float
    tokens: int


class FidelityAccumulator:
    """Sums per position over any number of batches. Accumulators of different batches can be merged."""

    def __init__(self) -> None:
        self._sums = np.zeros((len(_ROWS), 0))

    def update(
        self, reference_logits: Tensor, logits: Tensor, targets: Tensor, *, positions: Tensor | None = None
    ) -> None:
        """reference_logits, logits [B, T, V] on one device, targets [B, T]. positions: [T] integers >= 0, the
        place of each column in its sequence; 0 .. T-1 if left out.
        """
        _check_shapes(reference_logits, logits, targets, positions)
        batch, length, vocab = logits.shape
        where = np.arange(length) if positions is None else positions.cpu().numpy()
        self._grow(int(where.max(initial=-1)) + 1)
        step = max(1, _CHUNK // max(1, batch * vocab))
        for start in range(0, length, step):
            span = slice(start, start + step)
            figures = _figures(reference_logits[:, span], logits[:, span], targets[:, span])  # [6, T]
            np.add.at(self._sums.T[:, :5], where[span], figures.T[:, :5])
            with np.errstate(invalid="ignore"):  # a NaN is kept, without a warning
                np.maximum.at(self._sums[5], where[span], figures[5])

    def merge(self, other: FidelityAccumulator) -> None:
        """Add what another accumulator has seen."""
        length = other._sums.shape[1]
        self._grow(length)
        self._sums[:5, :length] += other._sums[:5]
        self._sums[5, :length] = np.maximum(self._sums[5, :length], other._sums[5])

    def result(self, *, start: int = 0, stop: int | None = None) -> FidelityMetrics:
        """The figures over positions start .. stop-1 (all of them if left out)."""
        sums = self._sums[:, start:stop]
        tokens = int(sums[0].sum())
        if tokens == 0:
            raise DataError(f"no tokens were compared at positions {start} to {stop}; call update first")
        delta = float(sums[3].sum()) / tokens
        return FidelityMetrics(
            delta_nll=delta,
            ppl_ratio=exp_or_inf(delta),
            max_abs_logit=float(sums[5].max()),
            kl=float(sums[4].sum()) / tokens,
            tokens=tokens,
        )

    def curves(self) -> dict[str, Curve]:
        """`nll`, `reference_nll`, `kl` and `max_abs_logit` of every position from 0 to the last one seen, and
        its `tokens`; NaN (max_abs_logit: 0) where a position has none.
        """
        rows = dict(zip(_ROWS, self._sums, strict=True))
        count = np.where(rows["tokens"] > 0, rows["tokens"], np.nan)
        means = {name: rows[name] / count for name in ("nll", "reference_nll", "delta_nll", "kl")}
        return {**means, "max_abs_logit": rows["max_abs_logit"].copy(), "tokens": rows["tokens"].copy()}

    def _grow(self, length: int) -> None:
        missing = length - self._sums.shape[1]
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, missing)))


def fidelity_metrics(reference_logits: Tensor, logits: Tensor, targets: Tensor) -> FidelityMetrics:
    """reference_logits, logits [B, T, V] or [T, V], targets [B, T] or [T] -> figures over all positions."""
    if logits.dim() == 2:
        reference_logits, logits, targets = reference_logits[None], logits[None], targets[None]
    accumulator = FidelityAccumulator()
    accumulator.update(reference_logits, logits, targets)
    return accumulator.result()


@attrs.frozen(kw_only=True)
class PolicyFidelity(FidelityMetrics):
    """The figures of one policy, and the decode backends that ran for it and for the fp32 reference."""

    policy: str
    backend: str
    reference_backend: str


def policy_fidelity(
    model: LanguageModel,
    tokens: Tokens,
    *,
    context: int,
    policy: KVCachePolicy | str,
    n_tokens: int,
    batch_size: int,
) -> PolicyFidelity:
    """Compare over the first `n_tokens` targets (fewer where `tokens` has fewer), in windows of `context`,
    `batch_size` windows at a time; each window starts with an empty cache.
    """
    chosen = KVCachePolicy.parse(policy) if isinstance(policy, str) else policy
    wide = KVCachePolicy.uniform("fp32")
    accumulator = FidelityAccumulator()
    backend = reference_backend = ""
    with inference(model):
        for x, y in held_out_windows(tokens, context, limit_tokens=n_tokens, batch_size=batch_size):
            x, y = x.to(model.device), y.to(model.device)
            batch, length = x.shape
            cache = model.new_cache(batch=batch, capacity=length, policy=chosen, rollback=0)
            exact = model.new_cache(batch=batch, capacity=length, policy=wide, rollback=0)
            backend, reference_backend = model.decode_backends(cache), model.decode_backends(exact)
            for t in range(length):
                token = x[:, t : t + 1]
                logits, reference = model(token, cache=cache), model(token, cache=exact)  # [B, 1, V]
                accumulator.update(reference, logits, y[:, t : t + 1], positions=torch.tensor([t]))
    return PolicyFidelity(
        **attrs.asdict(accumulator.result()),
        policy=chosen.short,
        backend=backend,
        reference_backend=reference_backend,
    )


def exp_or_inf(value: float) -> float:
    """exp(value), inf where that is too large for a float."""
    return math.exp(value) if not value > 709 else math.inf


def _figures(reference_logits: Tensor, logits: Tensor, targets: Tensor) -> Curve:
    """Sums over the batch: [B, T, V] twice, [B, T] -> [6, T] in the order of the accumulator's rows."""
    reference_logits, logits = reference_logits.double(), logits.double()
    log_p, log_q = reference_logits.log_softmax(-1), logits.log_softmax(-1)  # [B, T, V]
    index = targets.long()[..., None]
    reference_nll = -log_p.gather(-1, index)[..., 0]  # [B, T]
    nll = -log_q.gather(-1, index)[..., 0]
    p = log_p.exp()
    # where both are -inf the difference is 0, and a token that the reference rules out adds nothing
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)  # [B, T]
    apart = torch.where(reference_logits == logits, 0.0, (logits - reference_logits).abs())
    largest = apart.amax((0, 2))  # [T]
    delta = torch.where(nll == reference_nll, 0.0, nll - reference_nll)
    sums = [torch.ones_like(nll), nll, reference_nll, delta, kl]
    rows: Curve = torch.stack([*(figure.sum(0) for figure in sums), largest]).cpu().numpy()
    return rows


def _check_shapes(reference: Tensor, logits: Tensor, targets: Tensor, positions: Tensor | None) -> None:
    if logits.dim() != 3 or logits.shape != reference.shape or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"reference_logits {tuple(reference.shape)}, logits {tuple(logits.shape)}, "
            f"targets {tuple(targets.shape)}; expected [B, T, V], [B, T, V], [B, T]"
        )
    if positions is not None and positions.shape != logits.shape[1:2]:
        raise ValueError(f"positions {tuple(positions.shape)}; expected [{logits.shape[1]}]")


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
    """Put a sequence of `context` random tokens into an empty cache in one piece (prefill), then
    `decode_tokens` tokens one by one (decode): once to warm up, then `repeats` times; the medians count.
    """
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


def _once(model: LanguageModel, tokens: Tensor, cache: KVCache, context: int) -> tuple[float, float]:
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
