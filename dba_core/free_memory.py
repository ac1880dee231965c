"""How much memory is free, how much was used, and an error before something is begun that cannot fit.

    free = min(MemAvailable, what the control groups leave) + free swap        Linux
    free = what the driver gives + what torch keeps for itself                 CUDA
    elsewhere unknown, and nothing is refused

What is asked for is always a lower bound of what will be needed, so nothing that would fit is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dba_core.errors import DBAError

if TYPE_CHECKING:
    import torch

#: Less than this is not looked at: asking costs more than the answer is worth.
SMALL = 1 << 26
_UNLIMITED = 1 << 60


class NotEnoughMemoryError(DBAError):
    """What was asked for needs more memory than is free."""

    exit_code: ClassVar[int] = 3


def require_memory(need: int, *, device: str, what: str, smaller: str) -> None:
    """Raise NotEnoughMemoryError where `need` bytes, a lower bound, are more than is free on `device`.

    what: what needs them. smaller: what the user can make smaller.
    """
    if need < SMALL:
        return
    free = free_bytes(device)
    if free is not None and need > free:
        raise NotEnoughMemoryError(
            f"{what} needs at least {gib(need)} of memory on {device}, {gib(free)} are free; make {smaller} "
            "smaller, or free memory"
        )


def gib(count: int) -> str:
    """Bytes in words: 1610612736 -> "1.5 GiB"."""
    if count >= 1 << 60:
        return "over 1,000,000,000 GiB"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def many(count: int) -> str:
    """A number in words, however absurd: 1234567 -> "1,234,567"."""
    return f"{count:,}" if count < 10**18 else "over 10^18"


def free_bytes(
    device: str = "cpu", *, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can be had on a device (`cpu`, `cuda`, `cuda:N`) now; None where nobody tells."""
    if device.startswith("cuda"):
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device != "cpu":
        return None
    machine = _numbers(proc / "meminfo")
    if "MemAvailable" not in machine:
        return None
    available = 1024 * machine["MemAvailable"]
    return min([available, *_cgroup_rooms(proc, cgroups)]) + 1024 * machine.get("SwapFree", 0)


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group that this process is in, and each above it, leaves it; none without a limit."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = root / path.strip().lstrip("/")
        for folder in (place, *place.parents):
            room = _room(folder, *names)
            if room is not None:
                yield room
            if folder == root:
                break


def _room(folder: Path, limit_file: str, used_file: str, reclaimable: str) -> int | None:
    limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
    if not (limit.isdecimal() and used.isdecimal()) or int(limit) >= _UNLIMITED:
        return None
    return max(0, int(limit) - int(used) + _numbers(folder / "memory.stat").get(reclaimable, 0))


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name: 123 kB` or `name 123` of a file of the kernel."""
    found = re.findall(r"^([A-Za-z_()]+):?\s+([0-9]+)", _text(path), re.MULTILINE)
    return {name: int(number) for name, number in found}


def _text(path: Path) -> str:
    """Nothing for a file that is not there, which is how other systems look."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement where the device allows it."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most so far. CUDA: that torch's allocator had allocated since `reset_peak_memory`. CPU: the
    high-water mark of this process's resident memory since it started, interpreter, libraries and data
    included; 0 where the platform does not tell (Windows).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
