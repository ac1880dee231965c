"""Load a Llama model from a GGUF file, quantized or not.

The package `gguf` knows the blocks of its types and dequantizes. llama.cpp rotates neighbouring channels
and stores the rows of q and k in that order; here the halves of a head are rotated (as Hugging Face does), so
the rows are put back:

    row (pair i, part j) of a head      ours: j * D/2 + i       in the file: 2 i + j
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.distribution import install_command
from dba_core.errors import CheckpointError, ConfigError, SourceError, unknown
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import Fields, shown, told
from dba_plugins.checkpoints.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from dba_plugins.checkpoints.gguf_rope import divisors, read_gguf_rope
from dba_plugins.checkpoints.gguf_tokenizer import tokenizer_config, tokenizer_json
from dba_plugins.checkpoints.llama_names import from_gguf
from dba_plugins.checkpoints.rope_scaling import RopeScaling, per_head
from dba_plugins.checkpoints.source import SourceModel, SourceTensor, as_it_is, with_attention_factor

ARCHITECTURES = ("llama",)
#: The types whose values the package gives.
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("TQ1_0", "TQ2_0", "MXFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"),
    *("IQ4_NL", "IQ4_XS"),
)


def load_gguf(path: Path) -> SourceModel:
    """The model in one file. Raises CheckpointError for a file that is cut off or no GGUF, SourceError
    for another architecture and where the package `gguf` is not installed.
    """
    header = read_gguf_header(path, _block_sizes(path))
    fields = Fields(header.fields, where=str(path))
    family = fields.text("general.architecture")
    if family not in ARCHITECTURES:
        raise SourceError(f"{path}: {unknown('GGUF architecture', told(family), ARCHITECTURES)}")
    _refuse(fields)
    config, scaling = _config(fields, header)
    source = SourceModel(
        name=path.stem,
        family=family,
        path=path,
        config=config,
        weights=with_attention_factor(_weights(header, config, path), scaling.attention_factor),
        tokenizer_json=tokenizer_json(fields),
        tokenizer_config=tokenizer_config(fields),
        files=(path.name,),
    ).checked()
    attention = config.attention.shape
    frequencies = scaling.frequencies(
        attention.geo_head_dim,
        config.attention.rope_theta,
        divisors=divisors(header.tensors, attention.geo_head_dim, where=str(path)),
    )
    return attrs.evolve(source, frequencies=per_head(frequencies, attention.n_kv_heads))


#: Fields that would change every result and that this architecture does not have; the values that mean so.
_ABSENT: dict[str, tuple[object, ...]] = {
    "llama.attention.sliding_window": (0,),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.causal": (True,),
    "llama.attn_logit_softcapping": (0.0,),
    "llama.final_logit_softcapping": (0.0,),
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.use_parallel_residual": (False,),
    "llama.expert_count": (0,),
}


def _refuse(fields: Fields) -> None:
    wrong = [
        f"{name}={shown(fields.raw(name))}"
        for name, absent in _ABSENT.items()
        if fields.given(name) and fields.raw(name) not in absent
    ]
    if wrong:
        raise SourceError(
            f"{fields.where} asks for {'; '.join(wrong)}, which this library does not compute. Give a Llama "
            "model without that"
        )


def _block_sizes(path: Path) -> dict[int, tuple[int, int]]:
    """Elements and bytes of a block by the number of the type."""
    if importlib.util.find_spec("gguf") is None:
        raise SourceError(
            f"{path} is a GGUF file, and the package 'gguf' that reads it is not installed. Install it: "
            + install_command("gguf")
        )
    constants = importlib.import_module("gguf.constants")
    kinds, sizes = constants.GGMLQuantizationType.__members__, constants.GGML_QUANT_SIZES
    return {int(kinds[name]): sizes[kinds[name]] for name in TYPES if name in kinds}


def _weights(header: GgufHeader, config: ModelConfig, path: Path) -> dict[str, SourceTensor]:
    heads = {"attn.q_geo.weight": config.attention.n_heads, "attn.k_geo.weight": config.attention.n_kv_heads}
    weights: dict[str, SourceTensor] = {}
    for name, tensor in header.tensors.items():
        ours = from_gguf(name)
        if ours is None:
            continue
        if ours in weights:
            raise CheckpointError(
                f"{path} holds {printable(name)} under another name too; get the file again"
            )
        n_heads = next((n for part, n in heads.items() if ours.endswith(part)), None)
        weights[ours] = SourceTensor(
            name=printable(name),
            where=str(path),
            shape=tensor.shape,
            read=functools.partial(_read, tensor),
            arrange=as_it_is if n_heads is None else functools.partial(half_split_rows, n_heads=n_heads),
        )
    return weights


def _config(fields: Fields, header: GgufHeader) -> tuple[ModelConfig, RopeScaling]:
    """Resolved, and how its rotation is scaled."""
    n_layers = fields.whole("llama.block_count")
    each = functools.partial(_same_for_all_layers, fields, n_layers=n_layers)
    n_heads = each("llama.attention.head_count")
    kv_heads = each("llama.attention.head_count_kv", default=n_heads)
    width = fields.whole("llama.embedding_length")
    head_dim = fields.whole("llama.attention.key_length", default=max(1, width // n_heads))
    rotated = fields.whole("llama.rope.dimension_count", default=head_dim)
    if rotated != head_dim:
        raise SourceError(
            f"{fields.where}: only {rotated} of the {head_dim} channels of a head are rotated; supported: "
            "all of them"
        )
    context = fields.whole("llama.context_length")
    theta, scaling = read_gguf_rope(fields, context=context)
    embedding = header.tensors.get("token_embd.weight")
    try:
        attention = AttentionConfig(
            mode="standard" if kv_heads == n_heads else "gqa",
            n_heads=n_heads,
            n_kv_heads=kv_heads,
            geo_head_dim=head_dim,
            v_head_dim=fields.whole("llama.attention.value_length", default=head_dim),
            rope_theta=theta,
            rope_table=scaling.kind != "default" or "rope_freqs.weight" in header.tensors,
        )
        model = ModelConfig(
            vocab_size=fields.whole(
                "llama.vocab_size", default=embedding.shape[0] if embedding is not None else None
            ),
            context=context,
            n_layers=n_layers,
            d_model=width,
            d_ff=each("llama.feed_forward_length"),
            norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
            tie_embeddings="output.weight" not in header.tensors,
            attention=attention,
        ).resolved()
    except ConfigError as error:
        raise CheckpointError(f"{fields.where} describes no model: {error}") from error
    return model, scaling


def _same_for_all_layers(fields: Fields, name: str, *, n_layers: int, default: int | None = None) -> int:
    """One number, or an array of one for each layer, all the same."""
    value = fields.table.get(name)
    if not isinstance(value, np.ndarray):
        return fields.whole(name, default=default)
    numbers = value.tolist()
    if len(numbers) != n_layers:
        raise fields.wrong(name, f"a whole number, or one for each of {n_layers} layers")
    if len(set(numbers)) > 1:
        raise SourceError(
            f"{fields.where}: {name} differs from layer to layer ({sorted(set(numbers))[:5]}); supported: "
            "the same for all layers"
        )
    return Fields({name: numbers[0]}, where=fields.where).whole(name)


def _read(tensor: GgufTensor) -> Tensor:
    """float32, the rows of q and k as in the file."""
    dequantize: Callable[..., Any] = importlib.import_module("gguf.quants").dequantize
    kinds: Callable[[int], Any] = importlib.import_module("gguf.constants").GGMLQuantizationType
    with np.errstate(all="ignore"):  # scales that are not finite: `SourceTensor.load` says so
        array = dequantize(tensor.data, kinds(tensor.kind))
    values = torch.from_numpy(array if array.flags.writeable else array.copy()).float()
    return values.reshape(tensor.shape)


def half_split_rows(weight: Tensor, n_heads: int) -> Tensor:
    """[H*D, d_model] with the rows of a pair beside each other -> the rows of a head by halves."""
    rows = weight.view(n_heads, -1, 2, weight.shape[-1])  # [H, D/2, 2, d_model]
    return rows.transpose(1, 2).reshape(weight.shape)
