"""One pre-norm transformer block:

x = x + dropout(attn(ln1(x)))
x = x + dropout(ff(ln2(x)))

rmsnorm    y = x / sqrt(mean(x^2) + eps) * weight                       (Zhang and Sennrich 2019)
layernorm  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

swiglu     y = (silu(x W_gate) * (x W_up)) W_down                       (Shazeer 2020; what Llama uses)
gelu       y = gelu(x W_up) W_down                                      (GPT-2, exact gelu)
silu       y = silu(x W_up) W_down                                      (checkpoints of the origin system)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.attention.module import DecoupledAttention
from dba_core.attention.packed import PackedLinear, pack_child
from dba_core.cache.layer import LayerCache
from dba_core.config.model import ResolvedModel
from dba_core.contracts import Pack


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection."""

    def __init__(self, config: ResolvedModel, attention: DecoupledAttention) -> None:
        """attention: this layer's, of the model's width."""
        super().__init__()
        self.ln1 = build_norm(config)
        self.attn = attention
        self.ln2 = build_norm(config)
        self.ff = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, *, cache: LayerCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """[B, T, d_model] -> [B, T, d_model]. With a cache, the T tokens are appended to it."""
        x = x + self.dropout(self.attn(self.ln1(x), cache=cache, counts=counts))
        out: Tensor = x + self.dropout(self.ff(self.ln2(x)))
        return out


class FeedForward(nn.Module):
    """The position-wise part, of width d_ff inside: one branch, gated by another for swiglu."""

    def __init__(self, config: ResolvedModel) -> None:
        super().__init__()
        d_model, d_ff, bias = config.d_model, config.d_ff, config.bias
        self.w_gate = nn.Linear(d_model, d_ff, bias=bias) if config.mlp == "swiglu" else None
        self.w_up = nn.Linear(d_model, d_ff, bias=bias)
        self.w_down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = F.gelu if config.mlp == "gelu" else F.silu
        self.is_gated = self.w_gate is not None
        self.packed: PackedLinear | None = None

    def pack(self, pack: Pack) -> list[str]:
        """Pack the weights for inference, w_gate and w_up as one. Gives the names of those that stay."""
        left = pack_child(self, "w_down", pack)
        if self.packed is None:
            self.packed = PackedLinear.of(pack, *self._branches())
            if self.packed is None:
                return [*left, "w_gate", "w_up"]
            self.w_gate, self.w_up = None, None  # type: ignore[assignment]
        return left

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model]."""
        if self.packed is None:
            first, *gated = (branch(x) for branch in self._branches())  # [..., d_ff] each
        else:
            first, *gated = self.packed(x).chunk(2 if self.is_gated else 1, dim=-1)
        hidden = self.activation(first)
        out: Tensor = self.w_down(hidden * gated[0] if gated else hidden)
        return out

    def _branches(self) -> list[nn.Module]:
        return [self.w_up] if self.w_gate is None else [self.w_gate, self.w_up]


def build_norm(config: ResolvedModel) -> nn.Module:
    """[..., d_model] -> [..., d_model] with weight 1 and bias 0; only a layernorm can have a bias."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.has_norm_bias)
