"""From the configuration's device text to a device that is there. Called by the job and `load_run`."""

from __future__ import annotations

import os
import platform

import torch

from dba_core.errors import ConfigError


def resolve_device(text: str) -> str:
    """`auto` is CUDA where there is a GPU, else the CPU. Raises ConfigError for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if count else "cpu"
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"{text!r} is not there: this machine has {count} CUDA device(s) that torch can use; "
            "give --device cpu or auto",
            path="device",
        )
    return text


def device_name(device: torch.device) -> str:
    """What the device is called, for the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"
