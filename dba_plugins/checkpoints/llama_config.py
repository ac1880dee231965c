"""A Llama-family `config.json` as our ModelConfig.

model_type   llama, and mistral without a sliding window: the same computation
refused      biases in attention or MLP, other activations, partial rotation, other families
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.documents import read_object
from dba_core.errors import CheckpointError, ConfigError, SourceError, unknown
from dba_plugins.checkpoints.fields import Fields, shown, told
from dba_plugins.checkpoints.llama_rope import read_rope
from dba_plugins.checkpoints.rope_scaling import RopeScaling

#: Each family's own default of max_position_embeddings.
FAMILIES = {"llama": 2048, "mistral": 131072}


@attrs.frozen(kw_only=True)
class LlamaConfig:
    """The model's configuration (`tie_embeddings`: what the flag says) and how its rotation is scaled."""

    family: str
    model: ModelConfig
    scaling: RopeScaling


def read_llama_config(path: Path) -> LlamaConfig:
    """Read config.json. Raises CheckpointError for a file that is none, SourceError for other models."""
    if not path.exists():
        raise CheckpointError(
            f"{path.parent} has no config.json; give the folder of a Hugging Face model, or a .gguf file"
        )
    data = read_object(path, error=CheckpointError, advice="Download the model again")
    return llama_config(data, where=str(path))


def llama_config(data: Mapping[str, Any], *, where: str) -> LlamaConfig:
    """The same from the file's content; `where` is what errors name."""
    fields = Fields(data, where=where)
    family = data.get("model_type")
    if family is None:
        raise SourceError(f"{where} has no model_type; it has to name the family: {', '.join(FAMILIES)}")
    if not isinstance(family, str) or family not in FAMILIES:
        raise SourceError(f"{where}: {unknown('model family', told(family), FAMILIES)}")
    _refuse(fields, family)
    n_heads, kv_heads, head_dim = _heads(fields, family)
    context = fields.whole("max_position_embeddings", default=FAMILIES[family])
    theta, scaling = read_rope(fields, context=context)
    try:
        attention = AttentionConfig(
            mode="standard" if kv_heads == n_heads else "gqa",
            n_heads=n_heads,
            n_kv_heads=kv_heads,
            geo_head_dim=head_dim,
            v_head_dim=head_dim,
            rope_theta=theta,
            rope_table=scaling.kind != "default",
        )
        model = ModelConfig(
            vocab_size=fields.whole("vocab_size"),
            context=context,
            n_layers=fields.whole("num_hidden_layers"),
            d_model=fields.whole("hidden_size"),
            d_ff=fields.whole("intermediate_size"),
            norm="rmsnorm",
            norm_eps=fields.number("rms_norm_eps", default=1e-6),
            mlp="swiglu",
            tie_embeddings=fields.flag("tie_word_embeddings", default=False),
            attention=attention,
        ).resolved()
    except ConfigError as error:
        raise CheckpointError(f"{where} describes no model: {error}") from error
    return LlamaConfig(family=family, model=model, scaling=scaling)


def _heads(fields: Fields, family: str) -> tuple[int, int, int]:
    """Query heads, KV heads, channels of a head."""
    width, n_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if family == "mistral" and "num_key_value_heads" not in fields.table:
        fields.raw("num_key_value_heads")  # transformers would take 8, whatever the number of heads
    kv_heads = fields.whole("num_key_value_heads") if fields.given("num_key_value_heads") else n_heads
    if fields.given("head_dim"):
        return n_heads, kv_heads, fields.whole("head_dim")
    if width % n_heads:
        raise CheckpointError(
            f"{fields.where}: hidden_size={width} is not a multiple of num_attention_heads={n_heads}, and "
            "there is no head_dim; the file is damaged or was changed. Get it again"
        )
    return n_heads, kv_heads, width // n_heads


def _refuse(fields: Fields, family: str) -> None:
    """What this architecture does not have."""
    wrong = [
        f"{name}=True (supported: False)"
        for name in ("attention_bias", "mlp_bias")
        if fields.flag(name, default=False)
    ]
    if (act := fields.text("hidden_act", default="silu")) not in ("silu", "swish"):  # one function, two names
        wrong.append(f"hidden_act={shown(act)} (supported: 'silu')")
    if fields.given("sliding_window"):
        wrong.append(f"sliding_window={shown(fields.raw('sliding_window'))} (supported: None)")
    elif family == "mistral" and "sliding_window" not in fields.table:
        wrong.append("sliding_window=4096, which a mistral model without this field has (supported: None)")
    kinds = fields.table.get("layer_types")
    if kinds is not None and not (
        isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    ):
        wrong.append(f"layer_types={shown(kinds)} (supported: 'full_attention' throughout)")
    wrong += [
        f"{name}{_method(fields.raw(name))} (supported: float weights, or a .gguf file)"
        for name in ("quantization_config", "compression_config")
        if fields.given(name)
    ]
    if wrong:
        raise SourceError(
            f"{fields.where} asks for {'; '.join(wrong)}. Give a Llama-family model without that"
        )


def _method(config: object) -> str:
    """How the weights are quantized, where the file says it."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    return "" if method is None else f" of method {shown(method)}"
