"""`dba tune` as a function: the KV policy of a run's model that meets a goal, by measurement.

    reference   the run's model with exact attention, on its held-out text
    predicted   the sum of what each tensor's format costs alone (evaluation.policy_search)
    measured    the whole policy through the cache; the choice is made by this

Called by the command and by users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from dba_core.cache.bytes import bytes_per_token, residual_bytes
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.evaluation.policy_search import PolicySearch, policies_to_measure, search_policy
from dba_core.evaluation.reference import Divergence, Reference
from dba_core.evaluation.search import MOST_TRIES, Goal, Tried
from dba_core.model.language_model import LanguageModel
from dba_core.runs.evaluate import text_of
from dba_core.runs.load import Run
from dba_core.runs.summary import as_plain

SCHEMA = 1
HEADER = ("policy", "bytes per token", "predicted", "KL", "±", "nats lost", "±", "goal")


@attrs.frozen(kw_only=True)
class TuneRequest:
    """data: other text than the run's held-out part. tokens: of it. context: of a window, None is the run's.
    residual: newest tokens in fp16, in every policy.
    """

    goal: Goal
    data: str | None = None
    tokens: int = 4096
    context: int | None = None
    residual: int = 0


@attrs.frozen(kw_only=True)
class TuneReport:
    """search: what was measured. own: the run's recorded policy, measured on the same text. residual_bytes:
    of the residual window of one sequence, all layers, on top of the bytes per token.
    """

    run: str
    checkpoint: str
    checkpoint_step: int
    goal: str
    tokens: int
    context: int
    residual_bytes: int
    own_policy: str
    own_bytes_per_token: int
    own: Divergence
    search: PolicySearch
    schema: int = SCHEMA

    @property
    def chosen(self) -> KVCachePolicy | None:
        return self.search.chosen

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; policies as text."""
        plain: dict[str, Any] = as_plain(self)
        plain["search"] = {
            "residual": self.search.residual,
            "singles": [
                {**as_plain(single), "format": single.format.short} for single in self.search.singles
            ],
            "tried": [_plain_tried(each) for each in self.search.result.tried],
            "chosen": None if self.chosen is None else self.chosen.short,
        }
        return plain


def tune_run(
    run: Run, request: TuneRequest, *, on_step: Callable[[int, int], None] = lambda done, total: None
) -> TuneReport:
    """Measure and choose. on_step: told (windows done, windows in all, at most).

    Raises DataError for a text that is too short or cannot be read with the run's tokenizer.
    """
    model, context = run.model, request.context or run.config.model.context
    reference = Reference(model, text_of(run, request.data)[1], context=context, limit_tokens=request.tokens)
    shape, layers = model.attentions[0].shape, len(model.attentions)
    own_policy = run.config.kv_policy
    singles = sum(fmt.format != "fp16" for _, fmt, _ in policies_to_measure(shape, layers))
    total, done = reference.windows * (1 + singles + MOST_TRIES), 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    def measure(policy: KVCachePolicy) -> Divergence:
        return reference.compare(model, policy, on_window=step)

    own = measure(own_policy)
    return TuneReport(
        run=str(run.folder.path),
        checkpoint=run.which,
        checkpoint_step=run.step,
        goal=request.goal.text,
        tokens=own.tokens,
        context=context,
        residual_bytes=_window_bytes(model, request.residual),
        own_policy=own_policy.short,
        own_bytes_per_token=layers * bytes_per_token(shape, own_policy),
        own=own,
        search=search_policy(shape, layers, request.goal, measure, residual=request.residual),
    )


def rows(report: TuneReport) -> Iterable[tuple[str, ...]]:
    """One row for the run's own policy, then one for each that was measured as a whole, smallest first."""
    yield (
        f"{report.own_policy} (the run's)",
        f"{report.own_bytes_per_token:,}",
        "",
        *divergence_cells(report.own),
        "",
    )
    chosen = report.search.result.chosen
    for each in sorted(report.search.result.tried, key=lambda each: each.candidate.bytes_per_token):
        mark = "chosen" if each is chosen else "kept" if each.good else "missed"
        yield (
            each.candidate.key.short,
            f"{each.candidate.bytes_per_token:,}",
            f"{each.candidate.predicted:.4f}",
            *divergence_cells(each.measured),
            mark,
        )


def divergence_cells(measured: Divergence) -> tuple[str, str, str, str]:
    """KL, its error, the difference of the losses, its error."""
    return (
        f"{measured.kl:.4f}",
        _error(measured.kl_std_error),
        f"{measured.delta_nll:+.4f}",
        _error(measured.delta_std_error),
    )


def _error(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.4f}"


def _plain_tried(each: Tried[KVCachePolicy]) -> dict[str, Any]:
    return {
        "policy": each.candidate.key.short,
        "bytes_per_token": each.candidate.bytes_per_token,
        "predicted": each.candidate.predicted,
        "measured": as_plain(each.measured),
        "good": each.good,
    }


def _window_bytes(model: LanguageModel, residual: int) -> int:
    """Were every tensor in blocks."""
    shape = model.attentions[0].shape
    blocks = KVCachePolicy.parse(f"ksem=q8_0,kgeo=q8_0,v=q8_0,resid={residual}")
    return len(model.attentions) * residual_bytes(shape, blocks)
