"""The held-out loss against numpy, with a model that knows its position in the window."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dba_core.data.tokenizers import ByteTokenizer, IdTokenizer
from dba_core.errors import DataError
from dba_core.evaluation.metrics import held_out_loss

pytestmark = pytest.mark.torch


VOCAB = 20
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 50).astype(np.uint16)


class Bigram(torch.nn.Module):
    """logits_t = table[token_t] * (1 + t / 10): the loss shows where windows begin. Dropout in training."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)))
        self.dropout = torch.nn.Dropout(0.5)
        self.device = torch.device("cpu")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        scale = 1 + torch.arange(tokens.shape[1]) / 10
        return self.dropout(self.table[tokens]) * scale[:, None]


def oracle(model: Bigram, context: int, n: int) -> float:
    """The sum of -log p over the first n targets, in float64."""
    table = model.table.detach().numpy().astype(np.float64)
    total = 0.0
    for i in range(n):
        logits = table[TOKENS[i]] * (1 + (i % context) / 10)
        total += np.log(np.exp(logits).sum()) - logits[TOKENS[i + 1]]
    return total


@pytest.mark.parametrize("context", [1, 7, 49, 64])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_loss_equals_numpy(context: int, batch_size: int) -> None:
    model = Bigram()
    found = held_out_loss(model, TOKENS, context=context, batch_size=batch_size)
    assert found.tokens == 49
    assert found.loss == pytest.approx(oracle(model, context, 49) / 49, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss), rel=1e-12)
    assert found.bits_per_byte is None


def test_limit_takes_the_first_targets() -> None:
    model = Bigram()
    found = held_out_loss(model, TOKENS, context=8, batch_size=4, limit_tokens=21)
    assert found.tokens == 21
    assert found.loss == pytest.approx(oracle(model, 8, 21) / 21, rel=1e-6)


class TwoBytes(ByteTokenizer):
    """Every token above 9 stands for two bytes."""

    def n_bytes(self, ids: np.ndarray) -> int:
        return len(ids) + int((np.asarray(ids) > 9).sum())


def test_bits_per_byte() -> None:
    model = Bigram()
    one = held_out_loss(model, TOKENS, context=8, batch_size=4, tokenizer=ByteTokenizer())
    assert one.bits_per_byte == pytest.approx(one.loss / math.log(2), rel=1e-12)
    two = held_out_loss(model, TOKENS, context=8, batch_size=4, limit_tokens=30, tokenizer=TwoBytes())
    n_bytes = 30 + sum(int(t) > 9 for t in TOKENS[1:31])
    assert two.bits_per_byte == pytest.approx(oracle(model, 8, 30) / math.log(2) / n_bytes, rel=1e-6)
    none = held_out_loss(model, TOKENS, context=8, batch_size=4, tokenizer=IdTokenizer(VOCAB))
    assert none.bits_per_byte is None


def test_mode_comes_back() -> None:
    model = Bigram()
    model.train()
    first = held_out_loss(model, TOKENS, context=8, batch_size=4)
    assert model.training
    assert held_out_loss(model, TOKENS, context=8, batch_size=4) == first  # no dropout


def test_a_loss_too_large_for_a_perplexity() -> None:
    model = Bigram()
    with torch.no_grad():
        model.table.mul_(1e6)
    assert held_out_loss(model, TOKENS, context=8, batch_size=4).perplexity == math.inf


def test_nothing_to_predict() -> None:
    with pytest.raises(DataError, match="leave nothing to predict"):
        held_out_loss(Bigram(), TOKENS[:1], context=8, batch_size=4)
