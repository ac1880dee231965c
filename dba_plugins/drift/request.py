"""What `dba drift` is asked: which run, on what text, which settings of the long-sequence path. No torch."""

from __future__ import annotations

import math

import attrs

from dba_core.command import group, option
from dba_core.errors import UsageError, unknown
from dba_core.runs.choosing import RunChoice

METRICS = ("delta_nll", "ppl_ratio", "max_abs_logit", "kl")
#: Every metric over all positions, and over those that read a memory token.
NAMES = (*METRICS, *(f"beyond_window.{metric}" for metric in METRICS))
_SWITCH = {"on": (True,), "off": (False,), "both": (True, False)}


@attrs.frozen(kw_only=True)
class DriftRequest:
    """mem_block, local_window, summarizer, mass_correction: lists, of which every combination is measured;
    what is left out is as in the run.
    """

    run: RunChoice = group()
    data: str | None = option(
        None, help="Other text, all of it.", without="the run's held-out part", unit="PATH", offers="corpora"
    )
    documents: int | None = option(None, help="Stretches of the text.", without="up to 4", least=1)
    length: int | None = option(
        None,
        help="Positions of a document.",
        without="the training context, or where fewer than a quarter of its positions read memory tokens, so "
        "many that half of them do",
        least=1,
    )
    mem_block: tuple[int, ...] = option((), help="Tokens of a memory token.", least=1)
    local_window: tuple[int, ...] = option((), help="Full-resolution tokens.", least=0)
    q_chunk: int | None = option(None, help="Query tokens of a chunk.", unit="N", least=1)
    summarizer: tuple[str, ...] = option(
        (), help="The run's own, or one without weights such as 'mean'.", offers="summarizer_list"
    )
    mass_correction: str | None = option(
        None, help="log(mem_block) on memory logits.", allowed=tuple(_SWITCH)
    )
    fail_above: tuple[str, ...] = option(
        (),
        help="Exit with 1 where a setting is above X; may be repeated. METRIC: delta_nll, ppl_ratio, "
        "max_abs_logit, kl, or beyond_window.kl and so on.",
        unit="METRIC=X",
        repeated=True,
    )

    @property
    def mass_corrections(self) -> tuple[bool, ...]:
        return () if self.mass_correction is None else _SWITCH[self.mass_correction]

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Raises UsageError with the nearest metric."""
        return tuple(map(parse_threshold, self.fail_above))


@attrs.frozen
class Threshold:
    """The largest value of `metric` (one of NAMES) that is allowed."""

    metric: str
    limit: float


def parse_threshold(text: str) -> Threshold:
    """`metric=number`. Raises UsageError with the nearest metric."""
    name, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(
            f"--fail-above {text!r} is not metric=number; write it as in --fail-above delta_nll=0.05"
        )
    if name not in NAMES:
        raise UsageError(f"--fail-above {text!r}: {unknown('metric', name, NAMES)}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"--fail-above {text!r}: {number!r} is no finite number; write it as in {name}=0.05")
    return Threshold(name, limit)
