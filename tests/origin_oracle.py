"""A tiny checkpoint as the origin system wrote it, and its logits from the equations in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG: dict[str, Any] = {
    "device": "cpu",
    "vocab_size": 61,
    "block_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "kv_head": None,
    "d_model": 24,
    "d_ff": 40,
    "embed_dim": 16,
    "attn_mode": "decoupled",
    "attn_dim": 32,
    "sem_dim": 12,
    "geo_dim": 24,
    "decoupled_gate": True,
    "decoupled_gate_dynamic": True,
    "rope": True,
    "rope_base": 300.0,
    "tie_qk": False,
    "null_attn": True,
    "learned_temp": True,
    "mlp": "swiglu",
    "dropout": 0.0,
    "train_long_seq_enabled": True,
    "train_long_seq_mem_summarizer": "conv",
}


def random_state(config: dict[str, Any], *, long_sequence: bool = True) -> dict[str, Tensor]:
    """Names and shapes as that system's `state_dict` had them."""
    c = config
    width, heads, decoupled = c["d_model"], c["n_head"], c["attn_mode"] == "decoupled"
    total = width if c["attn_mode"] in ("standard", "baseline") else c["attn_dim"]
    kv = total if c["attn_mode"] != "gqa" else total // heads * c["kv_head"]
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (c["vocab_size"], c["embed_dim"])}
    if c["embed_dim"] != width:
        shapes |= {"emb_in.weight": (width, c["embed_dim"]), "emb_out.weight": (c["embed_dim"], width)}
    for layer in range(c["n_layer"]):
        block = f"blocks.{layer}."
        own = {f"{norm}.{part}": (width,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
        own |= {"ff.fc1.weight": (c["d_ff"], width), "ff.proj.weight": (width, c["d_ff"])}
        own |= {"attn.v_proj.weight": (kv, width), "attn.out_proj.weight": (width, total)}
        if decoupled:
            for part, rows in (("sem", c["sem_dim"]), ("geo", c["geo_dim"])):
                own |= {f"attn.{side}_{part}.weight": (rows, width) for side in "qk"}
            if c["decoupled_gate"]:
                own["attn.decoupled_gate_logit"] = (heads,)
                if c["decoupled_gate_dynamic"]:
                    own["attn.decoupled_gate_proj.weight"] = (heads, width)
            if long_sequence:
                own["attn.long_seq_mem_k_linear.weight"] = (c["sem_dim"] // heads,) * 2
                own["attn.long_seq_mem_k_alpha"] = ()
        else:
            own |= {"attn.q_proj.weight": (total, width), "attn.k_proj.weight": (kv, width)}
        if c["null_attn"]:
            keys = {"k_sem_null": c["sem_dim"], "k_geo_null": c["geo_dim"]} if decoupled else {"k_null": kv}
            own |= {f"attn.{name}": (1, 1, rows) for name, rows in (keys | {"v_null": kv}).items()}
        if c["learned_temp"]:
            own["attn.logit_scale"] = (heads,)
        shapes |= {block + name: shape for name, shape in own.items()}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    generator = torch.Generator().manual_seed(3)
    state = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if c["tie_qk"]:
        for name in [name for name in state if ".k_" in name and name.endswith(".weight")]:
            if "long_seq" not in name:
                state[name] = state[name.replace(".k_", ".q_")]
    return state


def write(path: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    torch.save({"config": config, "model": state, "step": 7}, path)
    return path


def logits(config: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """tokens [B,T] -> float64 [B,T,V]."""
    w = {name: tensor.double() for name, tensor in state.items()}
    x = w["tok_emb.weight"][tokens]
    if "emb_in.weight" in w:
        x = x @ w["emb_in.weight"].T
    for layer in range(config["n_layer"]):
        p = {name.split(".", 2)[2]: t for name, t in w.items() if name.startswith(f"blocks.{layer}.")}
        x = x + attention(config, p, layernorm(x, p, "ln1"))
        hidden = layernorm(x, p, "ln2") @ p["ff.fc1.weight"].T
        act = torch.nn.functional.gelu if config["mlp"] == "gelu" else torch.nn.functional.silu
        x = x + act(hidden) @ p["ff.proj.weight"].T
    x = layernorm(x, w, "ln_f")
    if "emb_out.weight" in w:
        x = x @ w["emb_out.weight"].T
    return x @ w["tok_emb.weight"].T


def layernorm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(config: dict[str, Any], p: dict[str, Tensor], x: Tensor) -> Tensor:
    heads = config["n_head"]
    kv_heads = config["kv_head"] if config["attn_mode"] == "gqa" else heads
    value = split(x @ p["attn.v_proj.weight"].T, kv_heads)
    paths = [("sem", False), ("geo", True)] if config["attn_mode"] == "decoupled" else [("proj", True)]
    gate = None
    if "attn.decoupled_gate_logit" in p:
        raw = p["attn.decoupled_gate_logit"].expand(*x.shape[:2], heads)
        if "attn.decoupled_gate_proj.weight" in p:
            raw = raw + x @ p["attn.decoupled_gate_proj.weight"].T
        gate = torch.sigmoid(raw).transpose(1, 2)[..., None]
    total = 0.0
    for name, rotated in paths:
        q = split(x @ p[f"attn.q_{name}.weight"].T, heads)
        k = split(x @ p[f"attn.k_{name}.weight"].T, kv_heads)
        if rotated and config["rope"]:
            q, k = rope(q, config["rope_base"]), rope(k, config["rope_base"])
        if config["null_attn"]:
            null = p["attn.k_null" if name == "proj" else f"attn.k_{name}_null"].expand(len(x), -1, -1)
            k = torch.cat([split(null, kv_heads), k], dim=2)
        k = k.repeat_interleave(heads // kv_heads, dim=1)
        if gate is not None:
            q = q * (2 * gate if name == "sem" else 2 - 2 * gate)
        total = total + q @ k.mT / q.shape[-1] ** 0.5
    if "attn.logit_scale" in p:
        total = total * p["attn.logit_scale"].clamp(-8, 8).exp()[None, :, None, None]
    if config["null_attn"]:
        null = split(p["attn.v_null"].expand(len(x), -1, -1), kv_heads)
        value = torch.cat([null, value], dim=2)
    value = value.repeat_interleave(heads // kv_heads, dim=1)
    length, extra = x.shape[1], int(config["null_attn"])
    visible = torch.ones(length, length + extra, dtype=torch.bool).tril(extra)
    out = total.masked_fill(~visible, -torch.inf).softmax(-1) @ value
    return out.transpose(1, 2).flatten(2) @ p["attn.out_proj.weight"].T


def split(x: Tensor, heads: int) -> Tensor:
    """[B,T,n*D] -> [B,n,T,D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rope(x: Tensor, base: float) -> Tensor:
    """Half-split, by complex numbers."""
    half = x.shape[-1] // 2
    angle = torch.outer(
        torch.arange(x.shape[2], dtype=torch.float64),
        base ** -(torch.arange(half, dtype=torch.float64) / half),
    )
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)
