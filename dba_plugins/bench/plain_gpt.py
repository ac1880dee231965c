"""A plain GPT to measure against: what one would write without this library, nothing left out and nothing
added.

    x = tok_emb[token] + pos_emb[position];  x += attn(ln1(x));  x += mlp(ln2(x));  logits = ln_f(x) tok_emb^T

Learned positions, one matrix for q, k and v, `scaled_dot_product_attention(is_causal=True)`, as in nanoGPT.
Norm and feed-forward are of the kind and size that the compared model has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.errors import ConfigError
from dba_core.model.block import FeedForward, build_norm


class PlainAttention(nn.Module):
    """Multi-head causal attention with heads of width d_model / n_heads."""

    def __init__(self, *, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] -> [B, T, d_model]."""
        batch, q_len, d_model = x.shape
        heads = (batch, q_len, self.n_heads, d_model // self.n_heads)
        q, k, v = (
            part.view(heads).transpose(1, 2) for part in self.qkv(x).split(d_model, dim=2)
        )  # [B, H, T, D]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, q_len, d_model))
        return out


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: ResolvedModel) -> None:
        super().__init__()
        self.ln1 = build_norm(config)
        self.attn = PlainAttention(
            d_model=config.d_model, n_heads=config.attention.n_heads, dropout=config.attention.dropout
        )
        self.ln2 = build_norm(config)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] -> [B, T, d_model]."""
        x = x + self.dropout(self.attn(self.ln1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.ln2(x)))
        return out


class PlainGPT(nn.Module):
    """The layers, width, context and vocabulary of `config`; its attention settings but the heads are
    ignored.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        config = config.resolved()
        if config.d_model % config.attention.n_heads:
            raise ConfigError(
                f"d_model={config.d_model} is not a multiple of n_heads={config.attention.n_heads}; a plain "
                "GPT needs that, so there is nothing to compare with",
                path="model.attention.n_heads",
            )
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_emb = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layers))
        self.ln_f = build_norm(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, 0.02, generator=generator)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> [B,T,d_model], normed."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tok_emb(tokens) + self.pos_emb(positions))  # [B, T, d_model]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.ln_f(x)
        return out

    def next_logits(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> [B,V] after the last one."""
        return F.linear(self.hidden(tokens)[:, -1], self.tok_emb.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of targets [B, T] given tokens [B, T]."""
        logits = F.linear(self.hidden(tokens), self.tok_emb.weight)  # [B, T, V]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
