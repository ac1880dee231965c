"""The KV policy of a run's model that meets a goal, by measurement.

    reference   the run's model with exact attention, on its held-out text
    predicted   the sum of what each tensor's format costs alone (evaluation.policy_search)
    measured    the whole policy through the cache; the choice is made by this

The run's own policy is measured first and takes part. Bytes are those of one sequence's cache with its
residual window, at the run's context and at the target context, for which a budget is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import UsageError
from dba_core.report import Reporter, as_plain
from dba_core.runs.evaluate import text_of
from dba_core.runs.load import Run
from dba_plugins.tune.distance import Divergence, Reference
from dba_plugins.tune.policy_search import (
    WINDOW,
    PolicySearch,
    Sizes,
    policies_to_measure,
    search_policy,
)
from dba_plugins.tune.request import TuneRequest
from dba_plugins.tune.search import MOST_TRIES, Goal, Tried, bytes_text


@attrs.frozen(kw_only=True)
class TuneFindings:
    """search: what was measured, with its sizes at the target context. own: the run's recorded policy,
    measured on the same text. context: of the windows of text. run_context: of the run. notes: what was left
    out.
    """

    run: str
    checkpoint: str
    checkpoint_step: int
    goal: str
    tokens: int
    context: int
    run_context: int
    own_policy: KVCachePolicy
    own: Divergence
    search: PolicySearch
    notes: tuple[str, ...]

    @property
    def chosen(self) -> KVCachePolicy | None:
        return self.search.chosen

    @property
    def target_context(self) -> int:
        return self.search.sizes.context

    @property
    def contexts(self) -> tuple[int, ...]:
        """The run's context, and the target's where that is another."""
        return tuple(dict.fromkeys((self.run_context, self.target_context)))

    def per_token(self, policy: KVCachePolicy, context: int) -> float:
        """Bytes of a cache of `context` tokens, residual window included, shared out over them."""
        return attrs.evolve(self.search.sizes, context=context).per_token(policy)

    def bytes_line(self, policy: KVCachePolicy) -> str:
        """What a policy takes, for people."""
        parts = [
            f"{bytes_text(self.per_token(policy, context))} bytes per token at {context:,} tokens"
            for context in self.contexts
        ]
        return f"{policy.short}: {', '.join(parts)}"

    def figures(self) -> dict[str, Any]:
        """Plain data for JSON; policies as text."""
        plain: dict[str, Any] = as_plain(self)
        plain["own_policy"] = self.own_policy.short
        plain["target_context"] = self.target_context
        plain["own_sizes"] = self._plain_sizes(self.own_policy)
        plain["search"] = {
            "windows": list(self.search.windows),
            "singles": [
                {**as_plain(single), "format": single.format.short} for single in self.search.singles
            ],
            "tried": [self._plain_tried(each) for each in self.search.result.tried],
            "chosen": None if self.chosen is None else self.chosen.short,
        }
        return plain

    def _plain_tried(self, each: Tried[KVCachePolicy]) -> dict[str, Any]:
        predicted = each.candidate.predicted
        return {
            "policy": each.candidate.key.short,
            "residual": each.candidate.key.residual,
            **self._plain_sizes(each.candidate.key),
            "predicted": None if math.isnan(predicted) else predicted,
            "measured": as_plain(each.measured),
            "good": each.good,
        }

    def _plain_sizes(self, policy: KVCachePolicy) -> dict[str, Any]:
        """bytes_per_token: at the target context, which is what a budget is compared with."""
        at_run = attrs.evolve(self.search.sizes, context=self.run_context)
        return {
            "bytes_per_token": self.per_token(policy, self.target_context),
            "bytes_target": self.search.sizes.of(policy),
            "bytes_per_token_at_run_context": self.per_token(policy, self.run_context),
            "bytes_run_context": at_run.of(policy),
        }


def tune_run(run: Run, request: TuneRequest, reporter: Reporter) -> TuneFindings:
    """Measure and choose; `request.run` is not read, for `run` is there already. The phase has a step for
    each window of text, fewer than it was told where a search ends early.

    Raises DataError for a text that is too short or cannot be read with the run's tokenizer, UsageError for a
    residual window that hides the formats from the measurement.
    """
    goal = goal_of(request)
    model, own_policy = run.model, run.kv_policy
    run_context = run.config.model.context
    context = request.context or run_context
    shape, layers = model.attentions[0].shape, len(model.attentions)
    sizes = Sizes(shape=shape, n_layers=layers, context=request.target_context or run_context)
    windows, notes = _windows(request, own_policy, context=context, target=sizes.context)
    reference = Reference(model, text_of(run, request.data)[1], context=context, limit_tokens=request.tokens)
    singles = sum(fmt.format != "fp16" for _, fmt, _ in policies_to_measure(shape, layers))
    worth = sizes.windows(windows, goal)
    notes += [
        f"resid={window} is left out: with it no policy is small enough at {sizes.context:,} tokens, or "
        "smaller than fp16"
        for window in windows
        if window not in worth
    ]
    reporter.phase("Measuring ...", reference.windows * (1 + len(worth) * singles + MOST_TRIES))

    def measure(policy: KVCachePolicy) -> Divergence:
        return reference.compare(model, policy, on_window=reporter.step)

    own = measure(own_policy)
    hidden = _hides(own_policy.residual, context=context, target=sizes.context)
    return TuneFindings(
        run=str(run.folder.path),
        checkpoint=run.which,
        checkpoint_step=run.step,
        goal=goal.text,
        tokens=own.tokens,
        context=context,
        run_context=run_context,
        own_policy=own_policy,
        own=own,
        search=search_policy(sizes, goal, measure, windows=worth, known={} if hidden else {own_policy: own}),
        notes=tuple(notes),
    )


def goal_of(request: TuneRequest) -> Goal:
    """Raises UsageError where the request has none."""
    return Goal(budget_bytes=request.budget_bytes, max_delta_nll=request.max_delta_nll)


def _windows(
    request: TuneRequest, own: KVCachePolicy, *, context: int, target: int
) -> tuple[tuple[int, ...], list[str]]:
    """The residual windows to try, and what is said about those that are not."""
    wanted = request.resid or tuple(sorted({0, WINDOW, own.residual}))
    hidden = [window for window in wanted if _hides(window, context=context, target=target)]
    why = (
        f"covers all {context:,} tokens that are measured at once, so that the formats are not seen, and the "
        f"target context is {target:,}; measure with a larger --context"
    )
    if hidden and request.resid:
        raise UsageError(f"--resid {hidden[0]} {why}, or give a smaller window")
    notes = [f"resid={window} is left out: it {why}" for window in hidden]
    return tuple(window for window in wanted if window not in hidden), notes


def _hides(window: int, *, context: int, target: int) -> bool:
    """Whether what is measured says nothing about a cache of the target's size."""
    return window >= context and target > context


def header(report: TuneFindings) -> tuple[str, ...]:
    sizes = [f"bytes per token at {context:,}" for context in report.contexts]
    return ("policy", *sizes, "predicted", "KL", "±", "nats lost", "±", "goal")


def rows(report: TuneFindings) -> Iterable[tuple[str, ...]]:
    """One row for each policy that was measured as a whole, the run's own first, then the smallest first."""
    tried = {each.candidate.key: each for each in report.search.result.tried}
    yield _row(report, report.own_policy, report.own, tried.get(report.own_policy), " (the run's)")
    for each in sorted(tried.values(), key=lambda each: each.candidate.bytes_per_token):
        if each.candidate.key != report.own_policy:
            yield _row(report, each.candidate.key, each.measured, each, "")


def _row(
    report: TuneFindings,
    policy: KVCachePolicy,
    measured: Divergence,
    tried: Tried[KVCachePolicy] | None,
    remark: str,
) -> tuple[str, ...]:
    """tried: None for a policy that could not take part."""
    mark, predicted = "left out", ""
    if tried is not None:
        mark = "kept" if tried.good else "missed"
        mark = "chosen" if tried is report.search.result.chosen else mark
        predicted = "" if math.isnan(tried.candidate.predicted) else f"{tried.candidate.predicted:.4f}"
    sizes = [bytes_text(report.per_token(policy, context)) for context in report.contexts]
    return (f"{policy.short}{remark}", *sizes, predicted, *divergence_cells(measured), mark)


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
