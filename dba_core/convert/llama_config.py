"""A Llama-family `config.json` as our ModelConfig. Called by `huggingface`.

model_type   llama, and mistral without a sliding window: the same computation
refused      biases in attention or MLP, other activations, partial rotation, other families
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.convert.rope_scaling import per_head, scaled_frequencies
from dba_core.errors import CheckpointError, UnsupportedError, unknown

FAMILIES = ("llama", "mistral")


@attrs.frozen(eq=False)
class LlamaConfig:
    """The model's configuration and its frequencies [G, head_dim/2] (None: the series of rope_theta)."""

    family: str
    model: ModelConfig
    frequencies: Tensor | None


def read_llama_config(path: Path) -> LlamaConfig:
    """Read config.json. Raises CheckpointError for a file that is none, UnsupportedError for other models."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no config.json; give the folder of a Hugging Face model, or a .gguf file"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON file ({error}); download the model again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object; download it again")
    return llama_config(data, where=str(path))


def llama_config(data: Mapping[str, Any], *, where: str) -> LlamaConfig:
    """The same from the file's content; `where` is what errors name."""
    family = data.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedError(f"{where}: {unknown('model family', str(family), FAMILIES)}")
    _refuse(data, where)
    sizes = {
        name: _whole(data, name, where)
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
    }
    n_heads = sizes["num_attention_heads"]
    kv_heads = _whole(data, "num_key_value_heads", where, default=n_heads)
    head_dim = _whole(data, "head_dim", where, default=sizes["hidden_size"] // n_heads)
    rope = data.get("rope_parameters") or data.get("rope_scaling")
    theta = float((rope or {}).get("rope_theta", data.get("rope_theta", 10000.0)))
    frequencies = per_head(scaled_frequencies(head_dim, theta, rope), kv_heads)
    attention = AttentionConfig(
        mode="standard" if kv_heads == n_heads else "gqa",
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        geo_head_dim=head_dim,
        v_head_dim=head_dim,
        rope_theta=theta,
        rope_table=frequencies is not None,
    )
    model = ModelConfig(
        vocab_size=sizes["vocab_size"],
        context=_whole(data, "max_position_embeddings", where, default=2048),
        n_layers=sizes["num_hidden_layers"],
        d_model=sizes["hidden_size"],
        d_ff=sizes["intermediate_size"],
        norm="rmsnorm",
        norm_eps=float(data.get("rms_norm_eps", 1e-6)),
        mlp="swiglu",
        tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        attention=attention,
    )
    return LlamaConfig(str(family), model.resolved(), frequencies)


def _refuse(data: Mapping[str, Any], where: str) -> None:
    """What this architecture does not have."""
    wrong = [
        f"{key}={data[key]!r} (supported: {allowed!r})"
        for key, allowed in (
            ("attention_bias", False),
            ("mlp_bias", False),
            ("sliding_window", None),
            ("hidden_act", "silu"),
            ("partial_rotary_factor", 1.0),
        )
        if data.get(key, allowed) not in (allowed, None)
    ]
    if data.get("quantization_config") is not None:
        wrong.append("quantization_config (supported: float weights, or a .gguf file)")
    if wrong:
        raise UnsupportedError(f"{where} asks for {'; '.join(wrong)}. Give a Llama-family model without that")


def _whole(data: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    value = data.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r}; a Llama configuration has a whole number there")
    return value
