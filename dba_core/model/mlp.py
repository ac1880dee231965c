"""The position-wise feed-forward part of a block:

swiglu  y = (silu(x W_gate) * (x W_up)) W_down      (Shazeer 2020; what Llama uses)
gelu    y = gelu(x W_up) W_down                     (GPT-2, exact gelu)
silu    y = silu(x W_up) W_down                     (checkpoints of the origin system)
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.config.model import MLPS
from dba_core.errors import ConfigError, unknown


class SwiGLU(nn.Module):
    """Two branches of width d_ff, one of which gates the other."""

    def __init__(self, *, d_model: int, d_ff: int, bias: bool) -> None:
        super().__init__()
        self.w_gate = nn.Linear(d_model, d_ff, bias=bias)
        self.w_up = nn.Linear(d_model, d_ff, bias=bias)
        self.w_down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model]."""
        hidden = F.silu(self.w_gate(x)) * self.w_up(x)  # [..., d_ff]
        out: Tensor = self.w_down(hidden)
        return out


class Plain(nn.Module):
    """One hidden layer of width d_ff."""

    activation: Callable[[Tensor], Tensor]

    def __init__(
        self, activation: Callable[[Tensor], Tensor], *, d_model: int, d_ff: int, bias: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.w_up = nn.Linear(d_model, d_ff, bias=bias)
        self.w_down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model]."""
        out: Tensor = self.w_down(self.activation(self.w_up(x)))
        return out


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}


def build_mlp(kind: str, *, d_model: int, d_ff: int, bias: bool) -> nn.Module:
    """The feed-forward part called `kind`: [..., d_model] -> [..., d_model]."""
    if kind == "swiglu":
        return SwiGLU(d_model=d_model, d_ff=d_ff, bias=bias)
    if kind in _ACTIVATIONS:
        return Plain(_ACTIVATIONS[kind], d_model=d_model, d_ff=d_ff, bias=bias)
    raise ConfigError(unknown("mlp", kind, MLPS), path="mlp")
