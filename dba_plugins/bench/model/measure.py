"""The rounds of `dba bench model`: everyone who takes part has its turn in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from dba_core.free_memory import free_bytes, gib
from dba_plugins.bench.model.contestants import Contestant, Prompts, Turn
from dba_plugins.bench.model.request import ModelBench
from dba_plugins.bench.model.resident import resident_bytes
from dba_plugins.bench.timing import Timing, interleaved

PREFILL, DECODE = "prefill", "decode"


@attrs.frozen(kw_only=True)
class Case:
    """One table of the report: the phase, threads, sequences and tokens of each."""

    phase: str
    threads: int
    batch: int
    length: int

    def prompts(self, vocab_size: int) -> Prompts:
        """Random tokens: what they are costs nothing."""
        generator = torch.Generator().manual_seed(0)
        tokens: Prompts = torch.randint(vocab_size, (self.batch, self.length), generator=generator).tolist()
        return tokens


def measure(
    request: ModelBench, case: Case, contestants: Mapping[str, Contestant], *, vocab_size: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each who takes part, and why others do not. threads: torch has them already."""
    if case.phase == PREFILL and case.batch * case.length > request.most_prefill:
        long = f"prefill of {case.batch} x {case.length:,} tokens: over --most-prefill {request.most_prefill}"
        return [], [f"{long}, not measured"] if request.most_prefill else []
    turns: dict[str, Turn] = {}
    notes = []
    for name, contestant in contestants.items():
        reason = _left_out(contestant, case)
        if reason is None:
            prompts = case.prompts(vocab_size)
            turns[name] = (
                contestant.prefill(prompts)
                if case.phase == PREFILL
                else contestant.decode(prompts, new_tokens=request.new_tokens)
            )
        else:
            notes.append(f"{name}: no {case.phase} of {reason}")
    if not turns:
        return [], notes
    timings = interleaved(
        {name: turn.call for name, turn in turns.items()},
        repeats=request.prefill_repeats if case.phase == PREFILL else request.repeats,
        device=torch.device("cpu"),
        warmup=1,
    )
    rows = _rows(request, case, contestants, turns, timings)
    del turns
    if request.resident and case.phase == DECODE:
        for row in rows:
            who = contestants[row["name"]]
            row["resident_bytes"] = resident_bytes(request, who, batch=case.batch, length=case.length)
    return rows, notes


def _left_out(contestant: Contestant, case: Case) -> str | None:
    """Of what, and why."""
    size = {"batch": case.batch, "length": case.length}
    reason = contestant.left_out(phase=case.phase, **size)
    if reason is not None:
        return reason
    need = contestant.cache_bytes(**size)
    need += contestant.work_bytes(**size) if case.phase == PREFILL else 0
    free = free_bytes()
    if free is None or need <= free:
        return None
    return f"{case.batch} x {case.length:,} tokens, it needs {gib(need)} of memory where {gib(free)} are free"


def _rows(
    request: ModelBench,
    case: Case,
    contestants: Mapping[str, Contestant],
    turns: Mapping[str, Turn],
    timings: Mapping[str, Timing],
) -> list[dict[str, Any]]:
    others = {name: timing.median_ms for name, timing in timings.items() if not contestants[name].ours}
    fastest = min(others, key=lambda name: others[name], default=None)
    steps = request.new_tokens if case.phase == DECODE else case.length
    return [
        {
            **attrs.asdict(case),
            "name": name,
            "kind": "backend" if contestants[name].ours else "baseline",
            "backend": turns[name].backend,
            "against_fastest": None if fastest is None else others[fastest] / timing.median_ms,
            "fastest_other": fastest,
            "tokens_per_second": case.batch * steps / timing.median_ms * 1e3,
            **timing.fields,
            "weight_bytes": contestants[name].weight_bytes,
            "cache_bytes": contestants[name].cache_bytes(batch=case.batch, length=case.length),
        }
        for name, timing in timings.items()
    ]
