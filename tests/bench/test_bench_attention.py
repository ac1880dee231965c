"""Times by turns: who is called when, what counts, medians; and the two tables of attention times."""

from __future__ import annotations

import pytest
import torch

from dba_core.errors import ConfigError
from dba_core.report import SilentReporter
from dba_plugins.bench import long as long_time
from dba_plugins.bench import timing
from dba_plugins.bench.long import LongBench, measure_long
from dba_plugins.bench.prefill import FP16, QUANTIZED, PrefillBench, measure_prefill
from dba_plugins.bench.prefill import run as run_prefill
from dba_plugins.bench.timing import interleaved

pytestmark = pytest.mark.torch


CPU = torch.device("cpu")


def test_candidates_take_turns_and_the_warmup_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, int]] = []
    now = 0.0

    def candidate(name: str, seconds: list[float]):
        def call(round_: int) -> None:
            nonlocal now
            turns.append((name, round_))
            now += seconds[round_]

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {"a": candidate("a", [9.0, 0.004, 0.001, 0.003]), "b": candidate("b", [9.0, 0.5, 0.5, 0.5])}
    times = interleaved(calls, repeats=3, device=CPU, warmup=1)
    assert turns == [(name, round_) for round_ in range(4) for name in ("a", "b")]
    assert times["a"].median_ms == pytest.approx(3.0)
    assert (times["a"].low_ms, times["a"].high_ms) == (pytest.approx(1.0), pytest.approx(4.0))
    assert (times["b"].median_ms, times["b"].repeats) == (pytest.approx(500.0), 3)


def test_one_repeat_is_refused() -> None:
    with pytest.raises(ConfigError, match="repeats=1 gives no median"):
        interleaved({}, repeats=1, device=CPU)


def test_prefill_is_measured_against_the_first_policy() -> None:
    rows = measure_prefill(tokens=33, policies=(FP16, f"{QUANTIZED},resid=8"), repeats=2, widths=(4, 6, 5))
    assert [row.name for row in rows] == [f"{FP16},resid=0", f"{QUANTIZED},resid=8"]
    assert rows[0].ratio == 1.0
    assert rows[1].ratio == pytest.approx(rows[1].timing.median_ms / rows[0].timing.median_ms)


def test_both_training_calls_are_right_and_reach_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared must be attention of the same tensors, gradients included."""
    seen: dict[str, list[torch.Tensor]] = {}
    outs: dict[str, torch.Tensor] = {}
    real = long_time._training_call

    def look(attention, tensors, upstream):
        name = "exact" if len(tensors) == 3 else "long"
        seen[name] = list(tensors)
        outs[name] = attention(*tensors).detach()
        return real(attention, tensors, upstream)

    monkeypatch.setattr(long_time, "_training_call", look)
    rows = measure_long(tokens=700, repeats=2, widths=(2, 4, 6))
    assert [row.name for row in rows] == ["exact", "memory tokens, chunks of 128"]
    assert all(
        t.grad is not None and t.grad.isfinite().all() and t.grad.any()
        for t in [*seen["exact"], *seen["long"]]
    )
    exact_part = 640  # before the first query that reads a memory token: 512 + 64, in chunks of 128
    torch.testing.assert_close(outs["long"][:, :, :exact_part], outs["exact"][:, :, :exact_part])
    assert not torch.allclose(outs["long"][:, :, exact_part:], outs["exact"][:, :, exact_part:], atol=1e-3)


def test_the_report_has_a_row_per_candidate() -> None:
    report = run_prefill(PrefillBench(tokens=9, repeats=2), SilentReporter())
    assert [row["name"] for row in report.rows] == [
        f"{FP16},resid=0",
        f"{QUANTIZED},resid=0",
        f"{QUANTIZED},resid=128",
        f"{QUANTIZED},resid=1024",
    ]
    assert report.rows[0]["ratio"] == 1.0
    long = long_time.run(LongBench(tokens=(40, 50), q_chunk=8, repeats=2), SilentReporter())
    assert [row["tokens"] for row in long.rows] == [40, 40, 50, 50]
    assert [row["speedup"] * row["ratio"] for row in long.rows] == pytest.approx([1.0] * 4)
