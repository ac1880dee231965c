"""A language model written again from its equations, in float64, with loops over heads and positions.

It reads the parameters by name and shares no code with what it checks: no gate, no null token, one path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dba_core.config.model import ModelConfig


def oracle_logits(config: ModelConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """tokens [B, T] -> logits [B, T, V] float64."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    x = w["tok_emb.weight"][tokens]
    if "emb_in.weight" in w:
        x = x @ w["emb_in.weight"].T
    for layer in range(config.n_layers):
        at = f"blocks.{layer}"
        x = x + _attention(config, w, at, _norm(config, w, f"{at}.ln1", x))
        x = x + _feed_forward(config, w, at, _norm(config, w, f"{at}.ln2", x))
    x = _norm(config, w, "ln_f", x)
    if "emb_out.weight" in w:
        x = x @ w["emb_out.weight"].T
    return x @ w.get("lm_head.weight", w["tok_emb.weight"]).T


def _norm(config: ModelConfig, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if config.norm == "rmsnorm":
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]
    return scaled + w[f"{name}.bias"] if f"{name}.bias" in w else scaled


def _feed_forward(config: ModelConfig, w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        out = value @ w[f"{at}.ff.{name}.weight"].T
        return out + w[f"{at}.ff.{name}.bias"] if f"{at}.ff.{name}.bias" in w else out

    up = linear("w_up", x)
    if config.mlp == "gelu":
        return linear("w_down", up * 0.5 * (1 + torch.erf(up / math.sqrt(2))))
    gate = linear("w_gate", x)
    return linear("w_down", gate / (1 + torch.exp(-gate)) * up)


def _attention(config: ModelConfig, w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    shape = config.attention.shape
    batch, length, _ = x.shape
    q = _heads(x @ w[f"{at}.attn.q_geo.weight"].T, shape.n_heads)
    k = _heads(x @ w[f"{at}.attn.k_geo.weight"].T, shape.n_kv_heads)
    v = _heads(x @ w[f"{at}.attn.v_proj.weight"].T, shape.n_kv_heads)
    out = torch.zeros(batch, length, shape.n_heads, shape.v_head_dim, dtype=torch.float64)
    for t in range(length):
        for head in range(shape.n_heads):
            group = head * shape.n_kv_heads // shape.n_heads
            query = _rotate(q[:, t, head], t, config.attention.rope_theta)
            keys = [_rotate(k[:, s, group], s, config.attention.rope_theta) for s in range(t + 1)]
            scores = torch.stack([(query * key).sum(-1) for key in keys], -1) / math.sqrt(shape.geo_head_dim)
            weight = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[:, t, head] = (weight[..., None] * v[:, : t + 1, group]).sum(1)
    return out.flatten(2) @ w[f"{at}.attn.out_proj.weight"].T


def _heads(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:2], n, -1)


def _rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Half-split rotary embedding of [B, D] at one position."""
    half = x.shape[-1] // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) * 2 / x.shape[-1])
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
