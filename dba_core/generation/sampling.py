"""The next token of each sequence, and where a sequence ends.

    p = softmax(keep_top_p(keep_top_k(logits / temperature)))        token = the first with cumsum(p) > u

One uniform number u per sequence and step decides, so the same logits and u give the same token on every
device and in every batch. A sequence ends before the first of its stop texts, wherever token borders fall.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dba_core.data.text_stream import TextStream
from dba_core.errors import DBAError


class LogitsError(DBAError):
    """The logits are NaN or infinite."""


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """[B, V] -> [B, V] with -inf everywhere but at the k largest; of equal ones the lower index is kept."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[:, k:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """[B, V] -> [B, V] with -inf outside of the nucleus: the fewest likeliest tokens that together hold p.

    The likeliest token always stays. Holtzman et al. 2019, The Curious Case of Neural Text Degeneration.
    """
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # of the tokens that are likelier
    outside = before >= p
    outside[:, 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """logits [B, V], uniforms [B] float64 in [0, 1) -> tokens [B] int64.

    temperature 0 takes the largest logit (the lowest index of equal ones) and leaves `uniforms` unread.
    Raises LogitsError when a logit is NaN or +inf.
    """
    if not bool((logits < torch.inf).all()):
        raise LogitsError("the model's logits are NaN or infinite, so no token can be chosen.")
    if temperature == 0:
        return logits.argmax(dim=-1)
    shifted = logits.double() - logits.double().amax(-1, keepdim=True)  # <= 0: no temperature overflows it
    scaled = shifted / temperature
    if top_k is not None:
        scaled = keep_top_k(scaled, top_k)
    if top_p is not None and top_p < 1:
        scaled = keep_top_p(scaled, top_p)
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)  # [B, V]
    mark = uniforms[:, None] * cumulative[:, -1:]  # [B, 1], below the last: u <= 1 - 2^-52
    return torch.searchsorted(cumulative, mark, right=True)[:, 0]


class RowStreams:
    """One random stream per sequence: it depends on the seed, on the prompt, and on how many equal prompts
    stand before it. So a prompt in a batch draws what it draws alone, and equal prompts in a batch differ.
    """

    def __init__(self, seed: int, prompts: Sequence[Sequence[int]]) -> None:
        seen: dict[tuple[int, ...], int] = {}
        self._generators = []
        for prompt in prompts:
            key = tuple(prompt)
            copy = seen.get(key, 0)
            seen[key] = copy + 1
            digest = hashlib.sha256(repr((seed, copy, key)).encode()).digest()
            self._generators.append(np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))))

    def next(self) -> Tensor:
        """The next number of every stream, multiples of 2^-52 in [0, 1): float64 [B]."""
        draws = [int(generator.integers(0, 1 << 52)) for generator in self._generators]
        return torch.tensor(draws, dtype=torch.float64, device="cpu") * 2.0**-52


class StopWatch:
    """Watches the text of one sequence. `stopped` is set once a stop text is there.

    Of several stop texts the one that is complete first counts. Every token whose text lies before it is
    kept; a token that reaches into it is dropped with it. Tokens that may turn out to be the start of a stop
    text are held back until that is settled.
    """

    def __init__(self, stops: Sequence[str], stream: TextStream) -> None:
        """stream: goes on after the prompt, whose text does not count."""
        self.stopped = False
        self._stops = tuple(stops)
        self._longest = max(len(stop) for stop in stops)
        self._stream = stream
        self._text = ""
        self._waiting: deque[tuple[int, int]] = deque()  # token, characters that its text reaches to

    def push(self, token: int) -> list[int]:
        """Take the next token; give the tokens that are certain now and were not before."""
        before = len(self._text)
        self._text += self._stream.push([token])
        self._waiting.append((token, len(self._text) + int(self._stream.pending)))
        return self._release(before)

    def finish(self) -> list[int]:
        """No more tokens come: give the rest."""
        if self.stopped:
            return []
        before = len(self._text)
        self._text += self._stream.finish()
        return self._release(before, last=True)

    def _release(self, before: int, *, last: bool = False) -> list[int]:
        start = self._stop_start(before)
        if start is not None:
            self.stopped = True
        elif last:
            start = len(self._text) + 1
        else:
            start = len(self._text) - self._partial_length()
        certain = []
        while self._waiting and self._waiting[0][1] <= start:
            certain.append(self._waiting.popleft()[0])
        return certain

    def _stop_start(self, before: int) -> int | None:
        """Where the stop text begins that is complete first, when one ends after character `before`."""
        search_from = max(0, before - self._longest + 1)
        found = []
        for stop in self._stops:
            start = self._text.find(stop, search_from)
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _partial_length(self) -> int:
        """Length of the longest end of the text that a stop text starts with."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0
