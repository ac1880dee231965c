"""The causal input-conditioned gate between the semantic and the geometric path:

    g[b,h,t] = sigmoid(decoupled_gate_logit[h] + x_t . W_gate[:, h]),   q_sem *= 2 g,  q_geo *= 2 (1 - g)

Row t reads token t alone. W_gate is zero at first, so that g is `init` everywhere. Built by attention.module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dba_core.contracts import GatePlugin, GateRequest, Support
from dba_core.hookspecs import hookimpl
from dba_plugins.gates.gate_options import GateOptions, needs_semantic_path


class CausalGate(nn.Module):
    """One gate value per token and query head, from that token's hidden state."""

    def __init__(self, *, d_model: int, n_heads: int, init_logit: float) -> None:
        super().__init__()
        self.decoupled_gate_logit = nn.Parameter(torch.full((n_heads,), init_logit))
        self.decoupled_gate_proj = nn.Linear(d_model, n_heads, bias=False)
        nn.init.zeros_(self.decoupled_gate_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] -> [B, H, T, 1] in [0, 1]."""
        logits = self.decoupled_gate_proj(x) + self.decoupled_gate_logit  # [B, T, H]
        return torch.sigmoid(logits).transpose(1, 2).unsqueeze(-1)


class CausalGatePlugin:
    name = "causal"
    contract = 1
    summary = "semantic/geometric balance per token and head, from the token's own hidden state"
    options_class = GateOptions

    def supports(self, request: GateRequest, options: GateOptions) -> Support:
        return needs_semantic_path(request)

    def build(self, request: GateRequest, options: GateOptions) -> nn.Module:
        shape = request.shape
        return CausalGate(d_model=shape.d_model, n_heads=shape.n_heads, init_logit=options.init_logit)


@hookimpl
def dba_gate() -> GatePlugin:
    return CausalGatePlugin()
