"""Fair comparison of times: all candidates in one process, taking turns, so that noise hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from dba_core.errors import ConfigError

WARMUP_ROUNDS = 3


@attrs.frozen(kw_only=True)
class Timing:
    """Milliseconds of one candidate: the median, the quarter and the three-quarter point of `repeats`."""

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int

    @property
    def text(self) -> str:
        return f"{self.median_ms:8.2f} ms ({self.low_ms:.2f} to {self.high_ms:.2f})"

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms

    @property
    def fields(self) -> dict[str, Any]:
        """For the row of a report."""
        return {
            "ms": self.median_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "repeats": self.repeats,
            "spread": f"{self.low_ms:.2f} to {self.high_ms:.2f}",
        }


def interleaved(
    candidates: Mapping[str, Callable[[int], None]],
    *,
    repeats: int,
    device: torch.device,
    warmup: int = WARMUP_ROUNDS,
) -> dict[str, Timing]:
    """Call every candidate once per round with the round's number; rounds of the warmup are not counted.

    Raises ConfigError for fewer than 2 repeats.
    """
    if repeats < 2:
        raise ConfigError(f"repeats={repeats} gives no median with a spread; give at least 2")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(warmup + repeats):
        for name, call in candidates.items():
            begun = time.perf_counter()
            call(round_)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return {name: timing_of(times) for name, times in seconds.items()}


def timing_of(seconds: list[float]) -> Timing:
    """Of at least two measured times."""
    low, median, high = statistics.quantiles(seconds, n=4)
    return Timing(median_ms=median * 1e3, low_ms=low * 1e3, high_ms=high * 1e3, repeats=len(seconds))
