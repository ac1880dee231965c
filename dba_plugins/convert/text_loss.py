"""The loss of a model on a text with its keys and values in a cache of a given policy.

    nll = mean over windows of the mean -log p(token | the window before it)

Windows of `context` tokens do not overlap; each goes through the cache in chunks, which gives what decoding
token by token would (attention.prefill). The standard error is that of the mean over windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.evaluation.metrics import exp_or_inf
from dba_core.model.language_model import LanguageModel, inference

CHUNK = 256  # tokens that go into the cache at once
_LOGITS = 64  # tokens whose logits are in memory at once


@attrs.frozen(kw_only=True)
class TextLoss:
    """nats per token; std_error of the mean over windows (NaN for a single one)."""

    nll: float
    std_error: float
    perplexity: float
    tokens: int
    window_nll: tuple[float, ...] = attrs.field(repr=False)


def text_loss(
    model: LanguageModel,
    tokens: Tokens,
    *,
    context: int,
    limit_tokens: int,
    policy: KVCachePolicy,
    on_window: Callable[[], None] = lambda: None,
) -> TextLoss:
    """The loss on the first `limit_tokens` targets of `tokens`, in windows of `context`."""
    means: list[float] = []
    counts: list[int] = []
    with inference(model):
        for x, y in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=1):
            x, y = x.to(model.device), y.to(model.device)
            cache = model.new_cache(batch=1, capacity=x.shape[1], policy=policy, rollback=0)
            losses = [
                _nll(model, model.hidden(part, cache=cache), targets)
                for part, targets in zip(torch.split(x, CHUNK, 1), torch.split(y, CHUNK, 1), strict=True)
            ]
            means.append(float(torch.cat(losses).mean()))
            counts.append(y.numel())
            on_window()
    weights = torch.tensor(counts, dtype=torch.float64)
    values = torch.tensor(means, dtype=torch.float64)
    nll = float((values * weights).sum() / weights.sum())
    spread = float(values.std()) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return TextLoss(
        nll=nll,
        std_error=spread,
        perplexity=exp_or_inf(nll),
        tokens=sum(counts),
        window_nll=tuple(means),
    )


def _nll(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """[1,T,d_model], [1,T] -> float64 [T]."""
    parts = zip(torch.split(hidden, _LOGITS, 1), torch.split(targets[0].long(), _LOGITS), strict=True)
    losses = [F.cross_entropy(model.logits(x)[0].float(), y, reduction="none") for x, y in parts]
    return torch.cat(losses).double()
