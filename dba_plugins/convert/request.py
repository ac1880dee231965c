"""What a conversion is asked for, and what it tells while it runs. Read by `dba_plugins.convert.job`."""

from __future__ import annotations

from pathlib import Path

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_plugins.convert.decouple import Recipe
from dba_plugins.convert.recipe_search import Scope
from dba_plugins.convert.texts import CALIBRATION, EVALUATION
from dba_plugins.tune.search import Goal

DEFAULT_POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
DEFAULT_CONTEXT = 2048


@attrs.frozen(kw_only=True)
class Wanted:
    """A goal, and what may vary to reach it."""

    goal: Goal
    scope: Scope


@attrs.frozen(kw_only=True)
class ConvertRequest:
    """recipe: None makes a run's folder of the model as it is. search: finds recipe and policy instead of
    those given. context: tokens of a calibration sequence and of an evaluation window (None: the source's,
    2048 at most). target_context: tokens of the sequence that a budget is for (None: `context`). calibrate,
    evaluate: what `data.source` takes. tokenizer: None is the source's own. bos, eos: whether texts begin and
    end with the model's special tokens; None is as its tokenizer has it.
    """

    model: Path
    out: Path
    recipe: Recipe | None
    policy: KVCachePolicy = attrs.field(factory=lambda: KVCachePolicy.parse(DEFAULT_POLICY))
    search: Wanted | None = None
    calibrate: str = CALIBRATION
    calibrate_tokens: int = 6 * DEFAULT_CONTEXT
    evaluate: tuple[str, ...] = EVALUATION
    eval_tokens: int = 4 * DEFAULT_CONTEXT
    context: int | None = None
    target_context: int | None = None
    tokenizer: str | None = None
    bos: bool | None = None
    eos: bool | None = None
    comparators: bool = True
    heal_steps: int = 0


class ConvertReporter:
    """What the job tells while it runs; this one says nothing."""

    def phase(self, text: str, steps: int) -> None:
        """A phase of `steps` steps begins."""

    def step(self) -> None:
        """One step of the phase is done."""

    def note(self, text: str) -> None:
        """Something the user wants to know."""
