"""One attention layer written again from its equations in float64, with nothing of it but its parameters.

RoPE turns complex numbers; a cache is an explicit choice, per query and key, between two dense key sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dba_core.attention.module import DecoupledAttention
from dba_core.attention.reference import reference_attention
from dba_core.config.attention import AttentionConfig
from dba_core.contracts import NullKV

POLICIES = (
    "ksem=fp32,kgeo=fp32,v=fp32",
    "ksem=fp16,kgeo=bf16,v=fp16,resid=4",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=5",
    "ksem=q8_0@8,kgeo=nf4@16,v=q8_0@32,resid=64",
    "ksem=nf4@16,kgeo=fp16,v=fp32,resid=3",
    "ksem=fp32,kgeo=fp32,v=q4_0@8,resid=7",
    "ksem=q8_0@16,kgeo=q8_0@16,v=bf16,resid=1",
)


class Dense(NamedTuple):
    """Queries, scaled and gated, [B,H,T,*]; keys and values [B,G,T,*]; float64."""

    q_sem: Tensor
    q_geo: Tensor
    k_sem: Tensor
    k_geo: Tensor
    v: Tensor


def make_layer(
    *, seed: int = 0, gate: str = "auto", null_token: str = "auto", **sizes: object
) -> DecoupledAttention:
    """A layer of d_model 24 with 4 heads unless `sizes` say otherwise, every parameter drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    config = AttentionConfig(**{"d_model": 24, "n_heads": 4, **sizes})  # type: ignore[arg-type]
    layer = DecoupledAttention(config, gate=gate, null_token=null_token)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            std = 0.5 if "logit" in name else 0.8 if "null" in name else 0.3
            parameter.normal_(0.0, std, generator=generator)
    return layer


def dense_heads(layer: DecoupledAttention, x: Tensor, *, offset: int = 0) -> Dense:
    """What the layer's projections mean, for tokens at positions offset.. of x [B,T,d_model]."""
    c = layer.config
    p = {name: parameter.double() for name, parameter in layer.named_parameters()}
    x = x.double()
    batch, q_len, _ = x.shape

    def heads(name: str, tied: str, n_heads: int) -> Tensor:
        weight = p.get(f"{name}.weight", p.get(f"{tied}.weight", x.new_zeros(0, x.shape[-1])))
        y = torch.einsum("btc,nc->btn", x, weight)
        return y.reshape(batch, q_len, n_heads, len(weight) // n_heads).transpose(1, 2)

    def rotated(t: Tensor) -> Tensor:
        half = t.shape[-1] // 2
        inverse = torch.tensor([c.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
        angle = (offset + torch.arange(q_len, dtype=torch.float64))[:, None] * inverse
        turned = torch.complex(t[..., :half], t[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], dim=-1)

    assert c.n_kv_heads is not None
    temperature = torch.ones(c.n_heads, dtype=torch.float64)
    if "logit_scale" in p:
        temperature = p["logit_scale"].clamp(-8, 8).exp()
    q_sem, q_geo = heads("q_sem", "q_sem", c.n_heads), rotated(heads("q_geo", "q_geo", c.n_heads))
    q_sem = q_sem * temperature[:, None, None] / max(1, q_sem.shape[-1]) ** 0.5
    q_geo = q_geo * temperature[:, None, None] / q_geo.shape[-1] ** 0.5
    if "gate.decoupled_gate_logit" in p:
        logits = p["gate.decoupled_gate_logit"].expand(batch, q_len, -1)
        if "gate.decoupled_gate_proj.weight" in p:
            logits = logits + torch.einsum("btc,hc->bth", x, p["gate.decoupled_gate_proj.weight"])
        g = (1 / (1 + torch.exp(-logits))).transpose(1, 2)[..., None]
        q_sem, q_geo = q_sem * (2 * g), q_geo * (2 - 2 * g)
    return Dense(
        q_sem=q_sem,
        q_geo=q_geo,
        k_sem=heads("k_sem", "q_sem", c.n_kv_heads),
        k_geo=rotated(heads("k_geo", "q_geo", c.n_kv_heads)),
        v=heads("v_proj", "", c.n_kv_heads),
    )


def dense_null(layer: DecoupledAttention) -> NullKV | None:
    """The layer's null token in float64, from its parameters."""
    p = dict(layer.named_parameters())
    if "null_token.v_null" not in p:
        return None
    k_geo = p["null_token.k_geo_null"].double()
    k_sem = p["null_token.k_sem_null"].double() if "null_token.k_sem_null" in p else k_geo[:, :0]
    return NullKV(k_sem=k_sem, k_geo=k_geo, v=p["null_token.v_null"].double())


def layer_oracle(layer: DecoupledAttention, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The layer's output for a whole sequence: float64 [B,T,d_model], differentiable in parameters and x."""
    out = reference_attention(*dense_heads(layer, x), null=dense_null(layer), mask=mask)
    return out.transpose(1, 2).flatten(2) @ layer.out_proj.weight.double().T


def windowed_attention(
    q_sem: Tensor,
    q_geo: Tensor,
    *,
    stored: Sequence[Tensor],
    recent: Sequence[Tensor],
    window: int,
    start: int,
    null: NullKV | None = None,
) -> Tensor:
    """Queries at positions start.. over keys 0..: (t - window, t] as recent, older ones as stored; float64.

    stored, recent: k_sem, k_geo, v [B,G,S,*] each. window 0: a query reads even itself as stored.
    """
    q_len, kv_len = q_geo.shape[2], stored[1].shape[2]
    t = start + torch.arange(q_len)[:, None]
    p = torch.arange(kv_len)
    is_recent = (p <= t) & (p > t - window)
    mask = torch.cat([(p <= t) & ~is_recent, is_recent], dim=-1)
    keys = [torch.cat([a.double(), b.double()], dim=2) for a, b in zip(stored, recent, strict=True)]
    return reference_attention(q_sem, q_geo, *keys, null=null, causal=False, mask=mask)
