"""The smallest cache that is good enough, or the best one that is small enough, with few measurements.

Candidates come with their size and a predicted cost. Only those on the frontier (no other is as small and
predicted as good) are measured, each at most once:

- a budget alone: the few that are predicted best within it; the best measured one is chosen;
- a gate: from the smallest that is predicted to pass towards larger ones until one passes, or, where the
  first passes, towards smaller ones until one fails; the smallest that passed is chosen.

The prediction only orders: what is chosen was measured. Called by `policy_search` and `convert.search`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import attrs

from dba_core.errors import DBAError, UsageError
from dba_core.evaluation.reference import Divergence

K = TypeVar("K")

#: Measurements at most, and those of a search with a budget alone.
MOST_TRIES = 8
BUDGET_TRIES = 4


class SearchError(DBAError):
    """Nothing that was measured keeps the goal."""


@attrs.frozen(kw_only=True)
class Goal:
    """budget_bytes: of one token's cache in all layers. max_delta_nll: nats per token that it may cost,
    compared with `Divergence.cost`. At least one of them.
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

    def fits(self, bytes_per_token: int) -> bool:
        return self.budget_bytes is None or bytes_per_token <= self.budget_bytes

    def passes(self, measured: Divergence) -> bool:
        return self.max_delta_nll is None or measured.cost <= self.max_delta_nll


@attrs.frozen(kw_only=True)
class Candidate(Generic[K]):
    """key: what it is. predicted: its cost in nats per token; only the order matters."""

    key: K
    bytes_per_token: int
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
    smallest: int

    def require(self, goal: Goal, what: str) -> Tried[K]:
        """The choice. Raises SearchError that says what came nearest; `what` was looked for."""
        if self.chosen is not None:
            return self.chosen
        if not self.tried:
            raise SearchError(
                f"no {what} keeps {goal.text}: the smallest that can be made takes {self.smallest:,} bytes "
                "per token. Give a larger --budget-bytes"
            )
        best = min(self.tried, key=lambda each: each.measured.cost)
        raise SearchError(
            f"no {what} keeps {goal.text}: the best of those measured loses {best.measured.cost:.4f} nats "
            f"per token at {best.candidate.bytes_per_token:,} bytes. Allow more loss or more bytes"
        )


def search(
    candidates: Iterable[Candidate[K]], goal: Goal, measure: Callable[[Candidate[K]], Divergence]
) -> SearchResult[K]:
    """Measure as the module says, and choose."""
    every = list(candidates)
    front = frontier([candidate for candidate in every if goal.fits(candidate.bytes_per_token)])
    tried: list[Tried[K]] = []

    def attempt(candidate: Candidate[K]) -> Tried[K]:
        measured = measure(candidate)
        tried.append(Tried(candidate=candidate, measured=measured, good=goal.passes(measured)))
        return tried[-1]

    if goal.max_delta_nll is None:
        for candidate in front[-BUDGET_TRIES:]:
            attempt(candidate)
        chosen = min(tried, key=lambda each: each.measured.kl, default=None)
    else:
        _walk(front, goal.max_delta_nll, attempt)
        passed = [each for each in tried if each.good]
        chosen = min(passed, key=lambda each: each.candidate.bytes_per_token, default=None)
    smallest = min((candidate.bytes_per_token for candidate in every), default=0)
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
