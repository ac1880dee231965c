"""The exact loss on held-out tokens: the training forward pass over windows that do not overlap.

    loss = mean over targets of -log p(target), nats     perplexity = exp(loss)
    bits per byte = sum of -log2 p / UTF-8 bytes of the targets

Every token but the first is predicted once, from the tokens of its own window.
"""

from __future__ import annotations

import math

import attrs
import torch
import torch.nn.functional as F

from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokenizer, Tokens
from dba_core.evaluation.metrics import exp_or_inf
from dba_core.model.language_model import LanguageModel, inference


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
    """The loss of the model on `tokens`, in windows of `context`, `batch_size` windows at a time.

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
    n_bytes = tokenizer.n_bytes(_text(tokens[: seen + 1], tokenizer)) if tokenizer is not None else None
    return HeldOut(
        loss=loss,
        perplexity=exp_or_inf(loss),
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else None,
        tokens=seen,
    )


def _text(tokens: Tokens, tokenizer: Tokenizer) -> Tokens:
    """The targets, without the token that ends the text where the tokenizer adds one."""
    special = tokenizer.special
    ended = special.add_eos and int(tokens[-1]) == special.eos[0]
    return tokens[1:-1] if ended else tokens[1:]
