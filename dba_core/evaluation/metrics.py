"""How far two sets of logits over the same tokens are apart, over all positions.

    nll = -log softmax(logits)[target]             delta_nll = mean nll - mean reference nll
    ppl_ratio = exp(delta_nll)                     max_abs_logit = max |logits - reference|
    kl = mean over positions of sum_v p_ref (log p_ref - log p), in nats

Everything is accumulated in float64 and kept per position. So is measured what a KV-cache policy costs: the
same tokens are decoded one by one with a cache of that policy and with an fp32 cache. Both go through the
model's decode path (T = 1), never through the training forward pass, so the figures hold for what generation
really does; an fp32 policy gives exactly zero.

torch is imported where it computes: whoever reads a recorded figure needs the records alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np
import numpy.typing as npt

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.tokenizers import Tokens
from dba_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from dba_core.model.language_model import LanguageModel

_CHUNK = 1 << 22  # logits that are widened to float64 at once

Curve = npt.NDArray[np.float64]


@attrs.frozen(kw_only=True)
class FidelityMetrics:
    """The figures of the module's head; `tokens` is the number of positions that they are over."""

    delta_nll: float
    ppl_ratio: float
    max_abs_logit: float
    kl: float
    tokens: int


@attrs.frozen(kw_only=True, eq=False)
class FidelityCurves:
    """The same per position, float64 [positions]; NaN (max_abs_logit: 0) where a position has no token."""

    nll: Curve
    reference_nll: Curve
    max_abs_logit: Curve
    kl: Curve
    tokens: Curve

    @property
    def delta_nll(self) -> Curve:
        return self.nll - self.reference_nll


class FidelityAccumulator:
    """Sums per position over any number of batches. Accumulators of different batches can be merged."""

    def __init__(self) -> None:
        # rows: tokens, nll, reference nll, nll - reference nll, kl, max |difference|
        self._sums = np.zeros((6, 0))

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

    def curves(self) -> FidelityCurves:
        """The figures of every position from 0 to the last one seen."""
        tokens, nll, reference, _, kl, largest = self._sums
        count = np.where(tokens > 0, tokens, np.nan)
        return FidelityCurves(
            nll=nll / count,
            reference_nll=reference / count,
            max_abs_logit=largest.copy(),
            kl=kl / count,
            tokens=tokens.copy(),
        )

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

    @property
    def figures(self) -> FidelityMetrics:
        """The figures alone."""
        return FidelityMetrics(
            **{field.name: getattr(self, field.name) for field in attrs.fields(FidelityMetrics)}
        )


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
    import torch

    from dba_core.data.batches import held_out_windows
    from dba_core.model.language_model import inference

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
    import torch

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
