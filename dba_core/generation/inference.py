"""Run a model without training it: evaluation mode and no gradients, and everything as before afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Within: `model.eval()` and no gradients. Afterwards every submodule has the mode that it had.

    `torch.no_grad`, not `inference_mode`: tables that a module makes on first use stay usable in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
