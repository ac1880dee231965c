"""Batches of training sequences, and the windows of an evaluation.

A sequence is `context` inputs and the same tokens one later as targets: x = tokens[o : o+context],
y = tokens[o+1 : o+context+1], with o uniform over every place where that fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dba_core.data.tokenizers import Tokens
from dba_core.errors import DataError


class BatchSampler:
    """Random batches from one generator. Every rank draws the whole global batch and takes its slice, so the
    sequences of a step are the same for any number of processes.

    batch_size: sequences of all ranks together, a multiple of world_size. drawn: global batches so far.
    """

    def __init__(
        self, tokens: Tokens, *, batch_size: int, context: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(tokens) < context + 1:
            raise DataError(
                f"{len(tokens)} tokens are too few for a context of {context}; give at least {context + 1}"
            )
        self._tokens = tokens
        self._context = context
        self._batch_size = batch_size
        self._of = {"batch_size": batch_size, "context": context, "tokens": len(tokens)}
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self.drawn = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """The next x and y, int64 [batch_size / world_size, context]."""
        offsets = self._generator.integers(0, len(self._tokens) - self._context, size=self._batch_size)
        self.drawn += 1
        windows = np.stack([self._tokens[o : o + self._context + 1] for o in offsets[self._mine]])
        both = torch.from_numpy(windows.astype(np.int64))  # [B, context + 1]
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; the same on every rank. JSON types only."""
        return {"generator": self._generator.bit_generator.state, "drawn": self.drawn, **self._of}

    def load_state_dict(self, state: object) -> None:
        """Go on where `state` was taken. Raises DataError when it belongs to other batches, or is none."""
        saved = state if isinstance(state, dict) else {}
        for key, mine in self._of.items():
            if saved.get(key) != mine:
                raise DataError(
                    f"the saved data position is for {key}={ascii(saved.get(key))[:60]}, this run has "
                    f"{mine}; resume with the same data, batch size and context"
                )
        try:
            drawn = saved["drawn"]
            if type(drawn) is not int or drawn < 0:
                raise ValueError(f"drawn={drawn!a:.60}")
            self._generator.bit_generator.state = saved["generator"]
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise DataError(
                f"the saved data position is damaged ({error}): no generator and count of batches; restore "
                "the checkpoint from a copy, or train again"
            ) from None
        self.drawn = drawn


def held_out_windows(
    tokens: Tokens, context: int, *, limit_tokens: int | None = None, batch_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows without overlap: x, y int64 [B, context] with B <= batch_size, the last one [1, rest] where the
    targets are no multiple of `context`. Every token but the first is a target exactly once.

    limit_tokens: only the first so many targets.
    """
    targets = len(tokens) - 1 if limit_tokens is None else min(limit_tokens, len(tokens) - 1)
    if targets < 1:
        raise DataError(
            f"{len(tokens)} token(s) with limit {limit_tokens} leave nothing to predict; give at least 2"
        )
    full = targets // context
    for first in range(0, full, batch_size):
        n = min(batch_size, full - first)
        yield _pairs(tokens, first * context, n, context)
    if targets % context:
        yield _pairs(tokens, full * context, 1, targets % context)


def _pairs(tokens: Tokens, start: int, n: int, length: int) -> tuple[Tensor, Tensor]:
    part = np.asarray(tokens[start : start + n * length + 1])
    span = torch.from_numpy(part.astype(np.int64))  # [n * length + 1]
    return span[:-1].view(n, length), span[1:].view(n, length)
