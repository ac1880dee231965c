"""A gate that is one learned number per head: g[h] = sigmoid(decoupled_gate_logit[h]), whatever the input.

The bias of the causal gate without its projection. Built by attention.module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dba_core.contracts import GatePlugin, GateRequest, Support
from dba_core.hookspecs import hookimpl
from dba_plugins.gates.gate_options import GateOptions, needs_semantic_path


class StaticGate(nn.Module):
    """One gate value per query head, the same for every token."""

    def __init__(self, *, n_heads: int, init_logit: float) -> None:
        super().__init__()
        self.decoupled_gate_logit = nn.Parameter(torch.full((n_heads,), init_logit))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] -> [B, H, T, 1] in [0, 1]; only the shape and dtype of x matter."""
        gate = torch.sigmoid(self.decoupled_gate_logit).to(x.dtype)
        return gate[None, :, None, None].expand(x.shape[0], -1, x.shape[1], -1)


class StaticGatePlugin:
    name = "static"
    contract = 1
    summary = "semantic/geometric balance per head, learned, the same for every token"
    options_class = GateOptions

    def supports(self, request: GateRequest, options: GateOptions) -> Support:
        return needs_semantic_path(request)

    def build(self, request: GateRequest, options: GateOptions) -> nn.Module:
        return StaticGate(n_heads=request.shape.n_heads, init_logit=options.init_logit)


@hookimpl
def dba_gate() -> GatePlugin:
    return StaticGatePlugin()
