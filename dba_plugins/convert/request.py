"""What `dba convert` is asked: which model, what becomes of it, on what text. No torch."""

from __future__ import annotations

from pathlib import Path

import attrs

from dba_core.command import argument, fields_of, option, value_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import UsageError
from dba_core.runs.choosing import KV_POLICY_HELP

DEFAULT_POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
DEFAULT_CONTEXT = 2048
DEFAULT_PAIRS = 16
#: What is calibrated on when nothing else is given: a text that every CPython has.
CALIBRATION = "docstrings"
CALIBRATION_TOKENS = 6 * DEFAULT_CONTEXT
_AS_TOKENIZER = "as the model's own tokenizer does"


@attrs.frozen(kw_only=True)
class ConvertRequest:
    """What is None was not given, and with a goal the search may choose it.

    keep: makes a run's folder of the model as it is; nothing that only a decoupling reads may then be given.
    budget_bytes, max_delta_nll: the goal of a search. latent: a number, or `none`.
    """

    model: Path = argument()
    out: Path = option(
        help="The folder to make; `dba sample`, `dba eval` and `load_run` read it.", unit="DIR"
    )
    keep: bool = option(False, help="Change nothing: make a run's folder of MODEL as it is, and measure it.")
    budget_bytes: int | None = option(
        None,
        help="Search --pairs, --latent and --kv-policy, those that are not given: the best of N bytes per "
        "token, all layers and the residual window included.",
        unit="N",
    )
    max_delta_nll: float | None = option(
        None, help="Search them for the smallest cache that loses at most X nats per token.", unit="X"
    )
    pairs: int | None = option(
        None,
        help="Channel pairs of a head that become semantic.",
        without=f"{DEFAULT_PAIRS}, or what a search finds",
        least=1,
    )
    select: str | None = option(
        None,
        help="Which pairs: those that change the attention least (kl), the shortest (norm), the slowest "
        "(low).",
        without="kl",
        allowed=("kl", "norm", "low"),
    )
    latent: str | None = option(
        None,
        help="One semantic key of N channels for all KV heads; none: one per head.",
        without="none, or what a search finds",
        unit="N|none",
    )
    spread: bool | None = option(
        None,
        help="Mix the channels of semantic keys and of values, which quantizes better and costs nothing.",
        without="they are mixed",
    )
    fit: bool | None = option(
        None,
        help="Turn and scale the queries of pairs that lose their rotation, as fits the attention best.",
        without="they are",
    )
    kv_policy: str | None = option(
        None,
        help=KV_POLICY_HELP,
        without=f"{DEFAULT_POLICY}, or what a search finds",
        unit="POLICY",
        offers="kv_policy",
    )
    calibrate: str | None = option(
        None,
        help="What to measure on: a text as for --data of `dba run`.",
        without=CALIBRATION,
        unit="TEXT",
        offers="corpora",
    )
    calibrate_tokens: int | None = option(
        None, help="Tokens of it.", without=f"{CALIBRATION_TOKENS}", least=1
    )
    evaluate: tuple[str, ...] = option(
        ("pydoc",),
        name="eval",
        help="What to report the loss on; may be repeated. Not the calibration text.",
        unit="TEXT",
        repeated=True,
        offers="corpora",
    )
    eval_tokens: int = option(4 * DEFAULT_CONTEXT, help="Tokens of each.", least=1)
    context: int | None = option(
        None,
        help="Tokens of a sequence.",
        without=f"{DEFAULT_CONTEXT}, or the model's where that is less",
        least=2,
    )
    target_context: int | None = option(
        None,
        help="Tokens of the sequence that --budget-bytes is for and that bytes are reported at too.",
        without="--context",
        unit="N",
        least=1,
    )
    tokenizer: str | None = option(
        None, help="A tokenizer.json, where the model has none of its own.", unit="FILE"
    )
    bos: bool | None = option(
        None, help="Begin a text with the model's BOS token, or do not.", without=_AS_TOKENIZER
    )
    eos: bool | None = option(
        None, help="End a text with the model's EOS token, or do not.", without=_AS_TOKENIZER
    )
    comparators: bool | None = option(
        None, help="Measure the source under the same formats too.", without="it is measured"
    )
    heal_steps: int | None = option(
        None,
        help="Steps in which the source teaches the new projections; undone where they make it worse.",
        without="0",
        least=0,
    )

    def __attrs_post_init__(self) -> None:
        latent = self.latent
        if latent not in (None, "none") and (not latent.isdecimal() or int(latent) < 1):
            raise UsageError(f"latent: {latent!r} is neither a whole number >= 1 nor 'none'; write 64, say")
        given = [
            field.flag
            for field in fields_of(type(self))
            if field.key in _DECOUPLING and value_of(self, field) is not None
        ]
        if self.keep and given:
            raise UsageError(
                f"--keep changes nothing in the model, so {', '.join(given)} would do nothing; leave one or "
                "the other out"
            )

    @property
    def latent_width(self) -> int | None:
        """None: one semantic key per head."""
        return None if self.latent in (None, "none") else int(self.latent)

    @property
    def policy(self) -> KVCachePolicy:
        """The one that was given, or the default. Raises ConfigError."""
        return KVCachePolicy.parse(self.kv_policy or DEFAULT_POLICY)


#: What only a decoupling reads, and so means nothing with `keep`.
_DECOUPLING = (
    "pairs",
    "select",
    "latent",
    "spread",
    "fit",
    "calibrate",
    "calibrate_tokens",
    "comparators",
    "heal_steps",
    "budget_bytes",
    "max_delta_nll",
)
