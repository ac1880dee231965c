"""From the configuration's device text to a device that is there. Called by the job and `load_run`."""

from __future__ import annotations

import os
import platform

import torch

from dba_core.errors import ConfigError
from dba_core.serialization.validators import check_device_name


def resolve_device(text: str) -> str:
    """`auto` is CUDA where there is a GPU, else the CPU. Raises ConfigError for a name that is no device and
    for a GPU that is not there.
    """
    check_device_name(text, path="device")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if count else "cpu"
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"{text!r} is not there: {_why_no_gpu(count)}; give --device cpu or auto",
            path="device",
        )
    return text


def _why_no_gpu(count: int) -> str:
    """What this torch was built with, and what it finds."""
    if torch.version.cuda is None:
        return (
            f"this torch ({torch.__version__}) was built without CUDA. Install a build with CUDA "
            "(https://pytorch.org/get-started)"
        )
    found = f"finds {count} GPU(s)" if count else "finds no GPU that it can use (see nvidia-smi)"
    return f"this torch ({torch.__version__}) was built for CUDA {torch.version.cuda} and {found}"


def device_name(device: torch.device) -> str:
    """What the device is called, for the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"
