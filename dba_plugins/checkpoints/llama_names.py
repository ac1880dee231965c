"""Families that compute what Llama computes, and the names of their tensors in two kinds of files, and ours.

    Hugging Face   model.layers.3.self_attn.q_proj.weight, or without `model.`: a model saved without its head
    GGUF           blk.3.attn_q.weight
    ours           blocks.3.attn.q_geo.weight

The whole attention of the source is the geometric path: every pair of channels is rotated.
"""

from __future__ import annotations

import re

#: Model types of config.json, each with its own default of max_position_embeddings.
FAMILIES = {"llama": 2048, "mistral": 131072}

_LAYER_PARTS = {
    "ln1.weight": ("input_layernorm.weight", "attn_norm.weight"),
    "attn.q_geo.weight": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attn.k_geo.weight": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attn.v_proj.weight": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attn.out_proj.weight": ("self_attn.o_proj.weight", "attn_output.weight"),
    "ln2.weight": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "ff.w_gate.weight": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "ff.w_up.weight": ("mlp.up_proj.weight", "ffn_up.weight"),
    "ff.w_down.weight": ("mlp.down_proj.weight", "ffn_down.weight"),
}
_TOP_PARTS = {
    "tok_emb.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "ln_f.weight": ("model.norm.weight", "output_norm.weight"),
    "lm_head.weight": ("lm_head.weight", "output.weight"),
}
_OURS_OF_HF = {hf: ours for ours, (hf, _) in _LAYER_PARTS.items()}
_OURS_OF_GGUF = {gguf: ours for ours, (_, gguf) in _LAYER_PARTS.items()}
_TOP_OF_HF = {hf: ours for ours, (hf, _) in _TOP_PARTS.items()}
_TOP_OF_GGUF = {gguf: ours for ours, (_, gguf) in _TOP_PARTS.items()}

#: Buffers that older files hold and that follow from the configuration.
_DERIVED = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
#: A layer's number, written in one way only.
_NUMBER = r"(0|[1-9][0-9]{0,8})"


def from_huggingface(name: str) -> str | None:
    """Our name; None for a buffer that is not needed; the name itself where it is not known."""
    inner = name.removeprefix("model.")
    if _DERIVED.fullmatch(inner):
        return None
    match = re.fullmatch(rf"layers\.{_NUMBER}\.(.+)", inner)
    if match and match[2] in _OURS_OF_HF:
        return f"blocks.{match[1]}.{_OURS_OF_HF[match[2]]}"
    if name in _TOP_OF_HF:
        return _TOP_OF_HF[name]
    return _TOP_OF_HF.get(f"model.{name}", name)


def to_huggingface(name: str) -> str:
    """Their name of one of ours: `from_huggingface` the other way. Raises KeyError for what Llama has not."""
    return _theirs(name, "model.layers", 0)


def to_gguf(name: str) -> str:
    """Their name of one of ours: `from_gguf` the other way. Raises KeyError for what Llama has not."""
    return _theirs(name, "blk", 1)


def _theirs(name: str, layers: str, column: int) -> str:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        return f"{layers}.{match[1]}.{_LAYER_PARTS[match[2]][column]}"
    return _TOP_PARTS[name][column]


def from_gguf(name: str) -> str | None:
    """Our name; None for what is read elsewhere; the name itself where it is not known."""
    if name == "rope_freqs.weight":
        return None
    match = re.fullmatch(rf"blk\.{_NUMBER}\.(.+)", name)
    if match and match[2] in _OURS_OF_GGUF:
        return f"blocks.{match[1]}.{_OURS_OF_GGUF[match[2]]}"
    return _TOP_OF_GGUF.get(name, name)
