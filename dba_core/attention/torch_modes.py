"""What torch wraps around a model: compiled graphs, replicas that wait for gradients."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., object])
_REASON = (
    "a pass with a KV cache is not compiled: it changes the cache in place and calls a decode backend. "
    "Compile with fullgraph=False, or without a cache"
)


def uncompiled(function: F) -> F:
    """The same function, of a pass with a KV cache; compiled code calls it between its graphs.

    It appends to the cache, whose lengths are kept in Python, and calls a decode backend with addresses of
    memory; neither is an operation of a graph, and the backends are compiled already. `fullgraph=True`, which
    allows no such call, raises torch's `Unsupported` with this reason.
    """

    @functools.wraps(function)
    def outside(*args: object, **kwargs: object) -> object:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return _disabled(function)(*args, **kwargs)

    # The marks that `torch.compiler.disable` sets. Calling it here would import dynamo, half of the start-up
    # of every command, for programs that compile nothing.
    vars(outside).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=_REASON)
    return cast("F", outside)


@functools.cache
def _disabled(function: Callable[..., object]) -> Callable[..., object]:
    disable = cast("Callable[..., Callable[..., object]]", torch.compiler.disable)
    return disable(function, reason=_REASON)


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
