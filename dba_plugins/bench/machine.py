"""What a measurement ran on: processor, memory, versions, date. Part of every report; see `machine_line`."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from dba_core.distribution import installed_version

PACKAGES = ("torch", "triton", "llvmlite", "transformers", "numpy")
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
#: Instruction sets worth naming, widest last.
_ISA = ("neon", "asimd", "avx", "avx2", "f16c", "fma", "avx512f", "avx512_bf16", "amx_tile")


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """JSON types only; what the platform does not tell is None. device: as torch writes it."""
    cpu = _cpu_info()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": device,
        "device_name": _cuda_name(device) if device.startswith("cuda") else cpu["model"],
        "cpu": cpu["model"],
        "cpu_features": [name for name in _ISA if name in cpu["flags"]],
        "cores": os.cpu_count(),
        "l3_bytes": last_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            "dba": installed_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
    }


def last_cache_bytes() -> int | None:
    """The largest cache of the first core."""
    sizes = [_size(path.read_text(encoding="utf-8")) for path in _CACHE.glob("index*/size")]
    return max(sizes, default=None)


def memory_bytes() -> int | None:
    """All of the machine's memory."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cuda_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _size(text: str) -> int:
    """ "32768K" -> bytes."""
    number, factor = text.strip(), 1
    for unit, size in (("K", 2**10), ("M", 2**20)):
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
    return int(number) * factor


def _cpu_info() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "model": model[1] if model else platform.processor() or platform.machine(),
        "flags": set(flags[1].split()) if flags else set(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
