"""The smallest cache that is good enough, or the best one that is small enough, with few measurements.

Candidates come with their size and a predicted cost. Only those on the frontier (no other is as small and
predicted as good) are measured, each at most once:

- a budget alone: the few that are predicted best within it; the best measured one is chosen;
- a gate: from the smallest that is predicted to pass towards larger ones until one passes, or, where the
  first passes, towards smaller ones until one fails; the smallest that passed is chosen.

The prediction only orders: what is chosen was measured. What was measured before the search, the policy that
a run has, takes part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import attrs

from dba_core.errors import DBAError, UsageError
from dba_plugins.tune.distance import Divergence

K = TypeVar("K")

#: Measurements at most, and those of a search with a budget alone.
MOST_TRIES = 8
BUDGET_TRIES = 4


class SearchError(DBAError):
    """Nothing that was measured keeps the goal."""


@attrs.frozen(kw_only=True)
class Goal:
    """budget_bytes: of one token's cache in all layers, a window shared out over the context. max_delta_nll:
    nats per token that it may cost, compared with `Divergence.cost`. At least one of them.
    """

    budget_bytes: int | None = None
    max_delta_nll: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.budget_bytes is None and self.max_delta_nll is None:
            raise UsageError("a search needs a goal; give --budget-bytes, --max-delta-nll or both")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise UsageError(f"--budget-bytes {self.budget_bytes} is no number of bytes; give at least 1")
        if self.max_delta_nll is not None and not self.max_delta_nll > 0:
            raise UsageError(
                f"--max-delta-nll {self.max_delta_nll} is no loss that may be added; give nats per token "
                "above 0, as in 0.02"
            )

    @property
    def text(self) -> str:
        """For people: what is asked for."""
        parts = []
        if self.budget_bytes is not None:
            parts.append(f"at most {self.budget_bytes:,} bytes per token")
        if self.max_delta_nll is not None:
            parts.append(f"at most {self.max_delta_nll:g} nats per token lost")
        return " and ".join(parts)

    def fits(self, bytes_per_token: float) -> bool:
        return self.budget_bytes is None or bytes_per_token <= self.budget_bytes

    def passes(self, measured: Divergence) -> bool:
        return self.max_delta_nll is None or measured.cost <= self.max_delta_nll

    def preference(self, tried: Tried[K]) -> tuple[float, float]:
        """Of those that keep the goal the least is chosen: the smallest under a gate, else the best."""
        size, kl = tried.candidate.bytes_per_token, tried.measured.kl
        return (kl, size) if self.max_delta_nll is None else (size, kl)


@attrs.frozen(kw_only=True)
class Candidate(Generic[K]):
    """key: what it is. bytes_per_token: of its cache at the context that a budget is for, residual window
    included. predicted: its cost in nats per token, NaN where nothing predicts it; only the order matters.
    """

    key: K
    bytes_per_token: float
    predicted: float


@attrs.frozen(kw_only=True)
class Tried(Generic[K]):
    """A candidate that was measured. good: it keeps the goal."""

    candidate: Candidate[K]
    measured: Divergence
    good: bool


@attrs.frozen(kw_only=True)
class SearchResult(Generic[K]):
    """tried: in order. chosen: None where nothing that was measured keeps the goal. smallest: the size of the
    smallest candidate of all.
    """

    tried: tuple[Tried[K], ...]
    chosen: Tried[K] | None
    smallest: float

    def require(self, goal: Goal, what: str) -> Tried[K]:
        """The choice. Raises SearchError that says what came nearest; `what` was looked for."""
        if self.chosen is None:
            raise SearchError(self.nearest(goal, what))
        return self.chosen

    def nearest(self, goal: Goal, what: str) -> str:
        """Where nothing keeps the goal: what came nearest to it."""
        small = [each for each in self.tried if goal.fits(each.candidate.bytes_per_token)]
        if not small:
            return (
                f"no {what} keeps {goal.text}: the smallest that can be made takes "
                f"{bytes_text(self.smallest)} bytes per token. Give a larger --budget-bytes"
            )
        best = min(small, key=lambda each: each.measured.cost)
        return (
            f"no {what} keeps {goal.text}: the best of those measured loses {best.measured.cost:.4f} nats "
            f"per token at {bytes_text(best.candidate.bytes_per_token)} bytes. Allow more loss or more bytes"
        )


def bytes_text(per_token: float) -> str:
    """1234.0 -> "1,234"; 1234.56 -> "1,234.6": rounded up, so that no budget looks kept that is not."""
    tenths = math.ceil(per_token * 10 - 1e-6)
    return f"{tenths // 10:,}" if tenths % 10 == 0 else f"{tenths / 10:,.1f}"


def search(
    candidates: Iterable[Candidate[K]],
    goal: Goal,
    measure: Callable[[Candidate[K]], Divergence],
    *,
    known: Iterable[tuple[Candidate[K], Divergence]] = (),
) -> SearchResult[K]:
    """Measure as the module says, and choose. known: measured already, not measured again, and chosen where
    nothing else is better.
    """
    every = list(candidates)
    front = frontier([candidate for candidate in every if goal.fits(candidate.bytes_per_token)])
    tried: list[Tried[K]] = []

    def note(candidate: Candidate[K], measured: Divergence) -> Tried[K]:
        good = goal.passes(measured) and goal.fits(candidate.bytes_per_token)
        tried.append(Tried(candidate=candidate, measured=measured, good=good))
        return tried[-1]

    before = {candidate.key: note(candidate, measured) for candidate, measured in known}

    def attempt(candidate: Candidate[K]) -> Tried[K]:
        return before.get(candidate.key) or note(candidate, measure(candidate))

    if goal.max_delta_nll is None:
        for candidate in front[-BUDGET_TRIES:]:
            attempt(candidate)
    else:
        _walk(front, goal.max_delta_nll, attempt)
    chosen = min((each for each in tried if each.good), key=goal.preference, default=None)
    everything = [*every, *(each.candidate for each in before.values())]
    smallest = min((candidate.bytes_per_token for candidate in everything), default=0.0)
    return SearchResult(tried=tuple(tried), chosen=chosen, smallest=smallest)


def _walk(front: Sequence[Candidate[K]], gate: float, attempt: Callable[[Candidate[K]], Tried[K]]) -> None:
    """front: smallest first. At most MOST_TRIES steps in one direction."""
    if not front:
        return
    likely = [place for place, candidate in enumerate(front) if candidate.predicted <= gate]
    start = likely[0] if likely else len(front) - 1
    up = not attempt(front[start]).good
    rest = front[start + 1 :] if up else front[:start][::-1]
    for candidate in rest[: MOST_TRIES - 1]:
        if attempt(candidate).good == up:
            return


def frontier(candidates: Iterable[Candidate[K]]) -> list[Candidate[K]]:
    """Those that no other one beats, smallest first: predicted cost falls along it."""
    best: list[Candidate[K]] = []
    for candidate in sorted(candidates, key=lambda each: (each.bytes_per_token, each.predicted)):
        if not best or candidate.predicted < best[-1].predicted:
            best.append(candidate)
    return best
