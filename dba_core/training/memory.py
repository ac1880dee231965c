"""Peak memory of a training run, in bytes.

CUDA: the most that torch's allocator had allocated on the device since `reset_peak_memory`. CPU: the
high-water mark of this process's resident memory since it started, interpreter, libraries and data
included; it cannot be reset. Called by training.loop.
"""

from __future__ import annotations

import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement where the device allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The peak so far; 0 where the platform does not tell (Windows without CUDA)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
