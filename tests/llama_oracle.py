"""A tiny Llama: its files as Hugging Face writes them, and its logits from the equations in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def random_weights(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width, ff = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", width // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {
            f"{layer}input_layernorm.weight": (width,),
            f"{layer}post_attention_layernorm.weight": (width,),
            f"{layer}self_attn.q_proj.weight": (q, width),
            f"{layer}self_attn.k_proj.weight": (kv, width),
            f"{layer}self_attn.v_proj.weight": (kv, width),
            f"{layer}self_attn.o_proj.weight": (width, q),
            f"{layer}mlp.gate_proj.weight": (ff, width),
            f"{layer}mlp.up_proj.weight": (ff, width),
            f"{layer}mlp.down_proj.weight": (width, ff),
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def llama_logits(
    config: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor, frequencies: Tensor
) -> Tensor:
    """tokens [B,T], frequencies [D/2] in radians per token -> float64 [B,T,V]."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    batch, length = tokens.shape

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name]

    def split(x: Tensor, n: int) -> Tensor:
        return x.view(batch, length, n, -1).transpose(1, 2)

    angle = torch.arange(length).double()[:, None] * frequencies.double()
    turn = torch.polar(torch.ones_like(angle), angle)  # [T, D/2]

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    x = w["model.embed_tokens.weight"][tokens]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        h = norm(x, f"{layer}input_layernorm.weight")
        q = rotate(split(h @ w[f"{layer}self_attn.q_proj.weight"].T, heads))
        k = rotate(split(h @ w[f"{layer}self_attn.k_proj.weight"].T, kv_heads))
        v = split(h @ w[f"{layer}self_attn.v_proj.weight"].T, kv_heads)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + out @ w[f"{layer}self_attn.o_proj.weight"].T
        h = norm(x, f"{layer}post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(h @ w[f"{layer}mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[f"{layer}mlp.up_proj.weight"].T)) @ w[f"{layer}mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head.T
