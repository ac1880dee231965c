"""What `dba tune` is asked: which run, which goal, on what text. No torch."""

from __future__ import annotations

import attrs

from dba_core.command import group, option
from dba_core.runs.choosing import RunChoice


@attrs.frozen(kw_only=True)
class TuneRequest:
    """At least one of budget_bytes and max_delta_nll is the goal."""

    run: RunChoice = group()
    budget_bytes: int | None = option(None, help="Bytes per token, all layers and window, at most.", unit="N")
    max_delta_nll: float | None = option(None, help="Nats per token that it may cost.", unit="X")
    data: str | None = option(
        None, help="Other text, all of it.", without="the run's held-out part", unit="TEXT", offers="corpora"
    )
    tokens: int = option(4096, help="Tokens of it.", least=2)
    context: int | None = option(None, help="Tokens of a window.", without="the run's context", least=1)
    target_context: int | None = option(
        None,
        help="Tokens of the sequence that --budget-bytes is for, window included.",
        without="the run's context",
        unit="N",
        least=1,
    )
    resid: tuple[int, ...] = option(
        (),
        help="Residual windows to try: newest tokens that stay in fp16.",
        without="0, 32 and the run's own",
        least=0,
    )
