"""Times of GPU work: CUDA events around the replay of a CUDA graph, the L2 cache flushed before, in turns.

A graph holds the launches of one call, so that what Python and the driver take per launch does not count,
for every candidate alike. What cannot be captured is timed as it is and marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dba_plugins.bench.timing import WARMUP_ROUNDS, Timing, timing_of

#: More than the L2 cache of any GPU today.
FLUSH_BYTES = 1 << 28


def gpu_timings(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, device: torch.device
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """The timing of every candidate, and the names of those that no graph could hold."""
    replays: dict[str, Callable[[], Any]] = {}
    eager: list[str] = []
    for name, call in calls.items():
        captured = _captured(call, device)
        replays[name] = call if captured is None else captured
        if captured is None:
            eager.append(name)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(WARMUP_ROUNDS + repeats):
        for name, replay in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            flush.zero_()
            start.record()
            replay()
            end.record()
            torch.cuda.synchronize(device)
            if round_ >= WARMUP_ROUNDS:
                seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: timing_of(times) for name, times in seconds.items()}, tuple(eager)


def _captured(call: Callable[[], Any], device: torch.device) -> Callable[[], None] | None:
    """The replay of a graph of the call; None where it cannot be captured."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return None
    return graph.replay
