"""How fast this machine reads memory: the floor under every decode time.

On the CPU the best of several sums over a buffer far larger than the caches, on as many threads as the
measurement uses; on CUDA the best of several copies, each byte counted once read and once written.
"""

from __future__ import annotations

import time

import torch

from dba_plugins.bench.machine import last_cache_bytes

_REPEATS = 10
_LEAST = 1 << 28


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second."""
    size = max(_LEAST, 8 * (last_cache_bytes() or 0))
    if device.type == "cuda":
        return _copy_bandwidth(device, size)
    buffer = torch.ones(size // 4)
    best = min(_seconds(buffer) for _ in range(_REPEATS))
    return size / best


def _seconds(buffer: torch.Tensor) -> float:
    begun = time.perf_counter()
    buffer.sum()
    return time.perf_counter() - begun


def _copy_bandwidth(device: torch.device, size: int) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize(device)
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * size / best
