"""A tiny Llama as a GGUF file, by the package that llama.cpp's converter uses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor


def write_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    *,
    more: Callable[[Any], None] = lambda writer: None,
    kind: str = "F32",
) -> Path:
    """As llama.cpp's converter does: rows of q and k that are neighbours are a pair. more: adds to it.
    kind: the ggml type of matrices."""
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    more(writer)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    }
    for name, tensor in weights.items():
        parts = name.split(".", 3)
        theirs = names[name] if name in names else f"blk.{parts[2]}.{names[parts[3]]}"
        for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                rows = tensor.view(config[key], 2, -1, tensor.shape[-1])  # halves
                tensor = rows.transpose(1, 2).reshape(tensor.shape)
        type_of_it = gguf.GGMLQuantizationType[kind if tensor.dim() > 1 else "F32"]
        quantized = gguf.quants.quantize(tensor.contiguous().numpy(), type_of_it)
        writer.add_tensor(theirs, quantized, raw_dtype=type_of_it)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
