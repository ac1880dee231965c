"""Autocast, asked and switched off in a way that knows devices without it (`meta`).

Called by the paths whose own casts are explicit.
"""

from __future__ import annotations

import contextlib

import torch


def autocast_enabled(device: torch.device) -> bool:
    """Whether operations on this device are cast by `torch.autocast` here."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within: operations on this device keep the dtypes that they are given."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
