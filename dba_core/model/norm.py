"""The normalization of the residual stream, over the last axis:

    rmsnorm    y = x / sqrt(mean(x^2) + eps) * weight
    layernorm  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

RMSNorm: Zhang and Sennrich 2019.
"""

from __future__ import annotations

from torch import nn

from dba_core.config.model import NORMS
from dba_core.errors import ConfigError, unknown


def build_norm(kind: str, *, width: int, eps: float, bias: bool) -> nn.Module:
    """[..., width] -> [..., width] with weight 1 and bias 0; `rmsnorm` has no bias whatever `bias` says."""
    if kind == "rmsnorm":
        return nn.RMSNorm(width, eps=eps)
    if kind == "layernorm":
        return nn.LayerNorm(width, eps=eps, bias=bias)
    raise ConfigError(unknown("norm", kind, NORMS), path="norm")
