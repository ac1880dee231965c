"""Parameters that a pass does not read, with a gradient of zero instead of none:

y = x,   dL/dx = dL/dy,   dL/dp = 0 for each parameter p
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def taking_part(x: Tensor, module: nn.Module | None) -> Tensor:
    """x; every trainable parameter of the module (None: nothing) gets a gradient of zeros from it.

    DistributedDataParallel waits for a gradient of every parameter, and fails where a pass does not read one.
    """
    if module is None or not torch.is_grad_enabled():
        return x
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    apply = cast("Callable[..., Tensor]", _TakingPart.apply)
    return apply(x, *parameters) if parameters else x


class _TakingPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
