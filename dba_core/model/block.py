"""One pre-norm transformer block:

x = x + dropout(attn(ln1(x)))
x = x + dropout(ff(ln2(x)))
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dba_core.attention.module import DecoupledAttention
from dba_core.cache.layer import LayerCache
from dba_core.config.model import ModelConfig
from dba_core.model.mlp import build_mlp
from dba_core.model.norm import build_norm
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoices


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection."""

    def __init__(self, config: ModelConfig, attention: DecoupledAttention) -> None:
        """config: resolved; attention: this layer's, of the model's width."""
        super().__init__()
        assert config.d_ff is not None
        self.ln1 = build_norm(
            config.norm, width=config.d_model, eps=config.norm_eps, bias=config.has_norm_bias
        )
        self.attn = attention
        self.ln2 = build_norm(
            config.norm, width=config.d_model, eps=config.norm_eps, bias=config.has_norm_bias
        )
        self.ff = build_mlp(config.mlp, d_model=config.d_model, d_ff=config.d_ff, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, *, cache: LayerCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """[B, T, d_model] -> [B, T, d_model]. With a cache, the T tokens are appended to it."""
        x = x + self.dropout(self.attn(self.ln1(x), cache=cache, counts=counts))
        out: Tensor = x + self.dropout(self.ff(self.ln2(x)))
        return out


def attention_of_layer(
    config: ModelConfig, plugins: PluginChoices, *, layer: int, registry: Registry | None, device: str
) -> DecoupledAttention:
    """The attention of one layer with the choices of that layer. config: with resolved attention widths."""
    own = plugins.of_layer(layer)
    return DecoupledAttention(
        config.attention,
        gate=own.gate,
        null_token=own.null_token,
        summarizer=own.summarizer,
        decode_backend=own.decode_backend,
        train_long_seq=config.train_long_seq,
        registry=registry,
        layer=layer,
        context=config.context,
        device=device,
    )
