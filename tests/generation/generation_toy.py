"""A small causal model with the surface of LanguageModel, in float64, so that tests can expect equal tokens.

    state_t = 0.5 state_(t-1) + E[token_t]          logits_t = 3 W tanh(state_t)

Its "cache" holds one state and one length per sequence. `oracle_logits` computes the same without any cache.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

VOCAB = 61
WIDTH = 8


class ToyCache:
    def __init__(self, batch: int, capacity: int, policy: object) -> None:
        self.state = torch.zeros(batch, WIDTH, dtype=torch.float64)
        self.lengths = [0] * batch
        self.capacity = capacity
        self.policy = policy
        self.checked_values = 0

    def check_values(self) -> None:
        self.checked_values += 1


class ToyModel(nn.Module):
    def __init__(self, *, vocab_size: int = VOCAB, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab_size, WIDTH, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(WIDTH, vocab_size, generator=generator, dtype=torch.float64))
        self.inner = nn.Dropout(0.5)  # in evaluation mode it does nothing, and some tests check its mode
        self.config = types.SimpleNamespace(vocab_size=vocab_size, context=64)
        self.device = torch.device("cpu")
        self.caches: list[ToyCache] = []
        self.calls: list[tuple[int, tuple[int, ...] | None]] = []

    def new_cache(
        self, *, batch: int, capacity: int, policy: object, rollback: int | None = None
    ) -> ToyCache:
        self.caches.append(ToyCache(batch, capacity, policy))
        return self.caches[-1]

    def forward(
        self, tokens: Tensor, *, cache: ToyCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        return self.logits(self.hidden(tokens, cache=cache, counts=counts))

    def hidden(
        self, tokens: Tensor, *, cache: ToyCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        assert not torch.is_grad_enabled()
        cache = cache or ToyCache(tokens.shape[0], tokens.shape[1], None)
        self.calls.append((tokens.shape[1], None if counts is None else tuple(counts)))
        states = torch.full((*tokens.shape, WIDTH), torch.nan, dtype=torch.float64)
        for row in range(tokens.shape[0]):
            for t in range(tokens.shape[1] if counts is None else counts[row]):
                cache.state[row] = 0.5 * cache.state[row] + self.inner(self.table[tokens[row, t]])
                cache.lengths[row] += 1
                assert cache.lengths[row] <= cache.capacity
                states[row, t] = cache.state[row]
        return states

    def logits(self, states: Tensor) -> Tensor:
        return 3 * (torch.tanh(states) @ self.head)


def oracle_logits(model: ToyModel, tokens: Sequence[int]) -> np.ndarray:
    """The logits after the last token, from the whole sequence at once: float64 [V]."""
    table, head = model.table.detach().numpy(), model.head.detach().numpy()
    weights = 0.5 ** np.arange(len(tokens))[::-1]
    return 3 * np.tanh(weights @ table[list(tokens)]) @ head
