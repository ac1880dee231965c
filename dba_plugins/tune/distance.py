"""How far a model with its cache in some policy is from a reference on the same text.

The reference is a model with exact attention; its last hidden states are kept, and its logits made from them
again for every comparison. Other models are compared through their caches, in chunks, which gives what
decoding token by token would (attention.prefill).

    kl = mean KL(reference || model)      delta_nll = mean nll - mean reference nll      both in nats

KL is never negative and far less noisy than the difference of two losses, which it equals in the mean where
the reference is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.evaluation.metrics import FidelityAccumulator, FidelityMetrics
from dba_core.model.language_model import LanguageModel, inference

CHUNK = 256  # tokens that go into a cache at once
_LOGITS = 64  # tokens whose logits are in memory at once


@attrs.frozen(kw_only=True)
class Divergence:
    """Over `tokens` tokens; standard errors are of the mean over windows, NaN for a single one."""

    kl: float
    kl_std_error: float
    delta_nll: float
    delta_std_error: float
    tokens: int

    @property
    def cost(self) -> float:
        """What a gate compares: the larger of both, so that luck in a small sample does not pass it."""
        return max(self.kl, self.delta_nll)


class Reference:
    """A model's exact answer to a text."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        *,
        context: int,
        limit_tokens: int,
        on_window: Callable[[], None] = lambda: None,
    ) -> None:
        """tokens: its first `limit_tokens` targets count, in windows of `context`. Raises DataError for a
        text of less than two tokens.
        """
        self._model = model
        self._windows: list[tuple[Tensor, Tensor, Tensor]] = []
        with inference(model):
            for x, y in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=1):
                x, y = x.to(model.device), y.to(model.device)
                self._windows.append((x, y, model.hidden(x)))
                on_window()

    @property
    def windows(self) -> int:
        """How often `on_window` is called in one comparison."""
        return len(self._windows)

    def compare(
        self, model: LanguageModel, policy: KVCachePolicy, *, on_window: Callable[[], None] = lambda: None
    ) -> Divergence:
        """model: of the same vocabulary; the reference itself, say, under a policy."""
        figures: list[FidelityMetrics] = []
        with inference(model), inference(self._model):
            for x, y, hidden in self._windows:
                cache = model.new_cache(batch=1, capacity=x.shape[1], policy=policy, rollback=0)
                accumulator = FidelityAccumulator()
                for start in range(0, x.shape[1], CHUNK):
                    part = slice(start, start + CHUNK)
                    found = model.hidden(x[:, part], cache=cache)
                    pieces = [torch.split(t, _LOGITS, 1) for t in (hidden[:, part], found, y[:, part])]
                    for ours, theirs, targets in zip(*pieces, strict=True):
                        accumulator.update(self._model.logits(ours), model.logits(theirs), targets)
                figures.append(accumulator.result())
                on_window()
        return _mean(figures)


def _mean(figures: Sequence[FidelityMetrics]) -> Divergence:
    counts = torch.tensor([each.tokens for each in figures], dtype=torch.float64)
    kl = torch.tensor([each.kl for each in figures], dtype=torch.float64)
    delta = torch.tensor([each.delta_nll for each in figures], dtype=torch.float64)
    weights = counts / counts.sum()
    return Divergence(
        kl=float((weights * kl).sum()),
        kl_std_error=_std_error(kl),
        delta_nll=float((weights * delta).sum()),
        delta_std_error=_std_error(delta),
        tokens=int(counts.sum()),
    )


def _std_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
