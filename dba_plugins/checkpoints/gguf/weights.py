"""A Llama model in a GGUF file, quantized or not: its numbers, its rotation, its weights.

The package `gguf` knows the blocks of its types and dequantizes. llama.cpp rotates neighbouring channels
and stores the rows of q and k in that order; here the halves of a head are rotated (as Hugging Face does), so
the rows are put back:

    row (pair i, part j) of a head      ours: j * D/2 + i       in the file: 2 i + j

The rotation, as llama.cpp computes it:

    rope.freq_base              theta
    rope.scaling.type           none, linear, yarn; linear where it is missing
    rope.scaling.factor         or, in older files, rope.scale_linear
    rope.scaling.original_context_length, yarn_beta_fast, yarn_beta_slow      yarn
    rope.scaling.attn_factor    of cos and sin, times what yarn itself has
    rope_freqs.weight           a tensor that the frequencies are divided by first (Llama 3.1)
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dba_core.contracts import EXAMPLE, ModelDescription, OpenedSource, StoredWeight, example_weights
from dba_core.errors import CheckpointError, SourceError, unknown
from dba_core.model.weights import check_finite
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import Fields, shown, told
from dba_plugins.checkpoints.gguf.header import GgufHeader, GgufTensor, read_gguf_header
from dba_plugins.checkpoints.gguf.tokenizer import tokenizer_config, tokenizer_json
from dba_plugins.checkpoints.llama_names import from_gguf, to_gguf
from dba_plugins.checkpoints.rope_scaling import (
    RopeScaling,
    check_kind,
    check_scaling,
    with_attention_factor,
    yarn_attention_factor,
)

ARCHITECTURES = ("llama",)
#: The types whose values the package gives.
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("TQ1_0", "TQ2_0", "MXFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"),
    *("IQ4_NL", "IQ4_XS"),
)

DIVISORS = "rope_freqs.weight"
_ROPE = "llama.rope."
_SCALING = "llama.rope.scaling."
_OF_YARN = ("yarn_beta_fast", "yarn_beta_slow", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
_KNOWN = {
    "dimension_count",
    "freq_base",
    "scale_linear",
    *(
        f"scaling.{name}"
        for name in ("type", "factor", "attn_factor", "original_context_length", "finetuned")
    ),
    *(f"scaling.{name}" for name in _OF_YARN),
}
#: Fields that may only say what is so without them.
_IDLE = {"yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0}


def open_file(path: Path) -> OpenedSource:
    """The model in one file. Raises CheckpointError for a file that is cut off or no GGUF, SourceError for
    another architecture.
    """
    header = read_gguf_header(path, _block_sizes())
    fields = Fields(header.fields, where=str(path))
    family = fields.text("general.architecture")
    if family not in ARCHITECTURES:
        raise SourceError(f"{path}: {unknown('GGUF architecture', told(family), ARCHITECTURES)}")
    _refuse(fields)
    model, scaling = _description(fields, header)
    return OpenedSource(
        name=path.stem,
        family=family,
        description=model,
        weights=with_attention_factor(_weights(header, model, path), scaling.attention_factor),
        frequencies=scaling.table_of(
            model, divisors=_divisors(header.tensors, model.geo_head_dim, where=str(path))
        ),
        tokenizer_json=tokenizer_json(fields),
        tokenizer_config=tokenizer_config(fields),
        files=(path.name,),
    )


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


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Elements and bytes of a block by the number of the type."""
    constants = importlib.import_module("gguf.constants")
    kinds, sizes = constants.GGMLQuantizationType.__members__, constants.GGML_QUANT_SIZES
    return {int(kinds[name]): sizes[kinds[name]] for name in TYPES if name in kinds}


def _weights(header: GgufHeader, model: ModelDescription, path: Path) -> dict[str, StoredWeight]:
    heads = {"attn.q_geo.weight": model.n_heads, "attn.k_geo.weight": model.n_kv_heads}
    weights: dict[str, StoredWeight] = {}
    for name, tensor in header.tensors.items():
        ours = from_gguf(name)
        if ours is None:
            continue
        if ours in weights:
            raise CheckpointError(
                f"{path} holds {printable(name)} under another name too; get the file again"
            )
        n_heads = next((n for part, n in heads.items() if ours.endswith(part)), None)
        weights[ours] = StoredWeight(
            name=printable(name),
            where=str(path),
            shape=tensor.shape,
            read=functools.partial(_read, tensor),
            arrange=None if n_heads is None else functools.partial(half_split_rows, n_heads=n_heads),
        )
    return weights


def _description(fields: Fields, header: GgufHeader) -> tuple[ModelDescription, RopeScaling]:
    """The model in numbers, and how its rotation is scaled."""
    n_layers = fields.whole("llama.block_count")
    each = functools.partial(_same_for_all_layers, fields, n_layers=n_layers)
    n_heads = each("llama.attention.head_count")
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
    rows = embedding.shape[0] if embedding is not None else None
    model = ModelDescription(
        vocab_size=fields.whole("llama.vocab_size", default=rows),
        context=context,
        n_layers=n_layers,
        d_model=width,
        d_ff=each("llama.feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=each("llama.attention.head_count_kv", default=n_heads),
        geo_head_dim=head_dim,
        v_head_dim=fields.whole("llama.attention.value_length", default=head_dim),
        norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in header.tensors,
        rope_theta=theta,
    )
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


def read_gguf_rope(fields: Fields, *, context: int) -> tuple[float, RopeScaling]:
    """theta, and how it is scaled. context: tokens that the model reads.

    Raises CheckpointError for fields that contradict each other or are no numbers, SourceError for what
    would change the rotation and is not known here.
    """
    for name in fields.table:
        if name.startswith(_ROPE) and name.removeprefix(_ROPE) not in _KNOWN:
            raise SourceError(
                f"{fields.where} has the field {shown(name)}={shown(fields.raw(name))}, which is not known "
                "here and would change the rotation. Give a model without it"
            )
    theta = fields.number(f"{_ROPE}freq_base", default=10000.0)
    factor, factor_name = _factor(fields)
    kind = fields.text(f"{_SCALING}type", default="linear")
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        if kind == "none" and factor not in (None, 1.0):
            raise CheckpointError(
                f"{fields.where}: {factor_name} is {factor:g} and {_SCALING}type is 'none'; they contradict "
                "each other. Get the file again, or give another of the same model"
            )
        kind = "default"
    check_kind(kind, where=fields.where)
    own = fields.number(f"{_SCALING}attn_factor", default=1.0)
    if kind == "yarn":
        if factor is None:
            fields.number(f"{_SCALING}factor")
        scaling = _yarn(fields, factor or 1.0, own, context)
    else:
        _refuse_yarn_fields(fields, kind)
        scaling = RopeScaling(kind=kind, factor=factor or 1.0, attention_factor=own)
    check_scaling(scaling, theta=theta, where=fields.where)
    return theta, scaling


def _factor(fields: Fields) -> tuple[float | None, str]:
    """The factor in either spelling (0 means none), and which one it was."""
    said = {
        name: fields.number(name)
        for name in (f"{_SCALING}factor", f"{_ROPE}scale_linear")
        if name in fields.table and fields.raw(name) != 0
    }
    if len(set(said.values())) > 1:
        told = " and ".join(f"{name} is {value:g}" for name, value in said.items())
        raise CheckpointError(
            f"{fields.where}: {told}; they contradict each other. Get the file again, or give another of the "
            "same model"
        )
    return next(((value, name) for name, value in said.items()), (None, f"{_SCALING}factor"))


def _yarn(fields: Fields, factor: float, own: float, context: int) -> RopeScaling:
    for name, idle in _IDLE.items():
        value = fields.table.get(_SCALING + name, idle)
        if value != idle and not (name == "yarn_ext_factor" and value == -1):
            raise SourceError(
                f"{fields.where}: {_SCALING}{name} is {shown(value)} (supported: {idle:g}). Give a model "
                "without it"
            )
    attention_factor = yarn_attention_factor(factor) * own
    said = fields.number(f"{_SCALING}yarn_attn_factor", default=attention_factor)
    if abs(said - attention_factor) > 1e-5 * attention_factor:
        raise SourceError(
            f"{fields.where}: {_SCALING}yarn_attn_factor is {said:g}, and YaRN with this factor has "
            f"{attention_factor:g}. The converter writes this field and llama.cpp does not read it, so that "
            "it is not known which is meant. Give the Hugging Face folder of the model"
        )
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original=float(fields.whole(f"{_SCALING}original_context_length", default=context)),
        beta_fast=fields.number(f"{_SCALING}yarn_beta_fast", default=32.0),
        beta_slow=fields.number(f"{_SCALING}yarn_beta_slow", default=1.0),
        attention_factor=attention_factor,
    )


def _refuse_yarn_fields(fields: Fields, kind: str) -> None:
    found = [_SCALING + name for name in _OF_YARN if _SCALING + name in fields.table]
    if found:
        raise CheckpointError(
            f"{fields.where} has {', '.join(found)}, and its RoPE scaling is {kind!r}, not 'yarn'; they "
            "contradict each other. Get the file again, or give another of the same model"
        )


def _divisors(tensors: Mapping[str, GgufTensor], head_dim: int, *, where: str) -> Callable[[], Tensor] | None:
    """What makes what the frequencies are divided by, float64 [head_dim/2]; None where the file does not
    say.
    """
    if {"rope_factors_long.weight", "rope_factors_short.weight"} & tensors.keys():
        check_kind("longrope", where=where)
    tensor = tensors.get(DIVISORS)
    if tensor is None:
        return None
    return functools.partial(_positive, tensor, head_dim, where=where)


def _positive(tensor: GgufTensor, head_dim: int, *, where: str) -> Tensor:
    if tensor.kind != 0 or tensor.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{where}: {DIVISORS} is of shape {tensor.shape} and ggml type {tensor.kind}; allowed: float32 "
            f"[{head_dim // 2}], one for each pair of a head's channels. Get the file again"
        )
    values = torch.from_numpy(tensor.data.view(np.dtype("<f4")).astype(np.float64))
    check_finite(values, name=DIVISORS, where=where)
    if not bool((values > 0).all()):
        raise CheckpointError(f"{where}: {DIVISORS} holds values that are not above 0. Get the file again")
    return values


def _read(tensor: GgufTensor) -> Tensor:
    """float32, the rows of q and k as in the file."""
    dequantize: Callable[..., Any] = importlib.import_module("gguf.quants").dequantize
    kinds: Callable[[int], Any] = importlib.import_module("gguf.constants").GGMLQuantizationType
    with np.errstate(all="ignore"):  # scales that are not finite: `StoredWeight.load` says so
        array = dequantize(tensor.data, kinds(tensor.kind))
    values = torch.from_numpy(array if array.flags.writeable else array.copy()).float()
    return values.reshape(tensor.shape)


def half_split_rows(weight: Tensor, n_heads: int) -> Tensor:
    """[H*D, d_model] with the rows of a pair beside each other -> the rows of a head by halves."""
    rows = weight.view(n_heads, -1, 2, weight.shape[-1])  # [H, D/2, 2, d_model]
    return rows.transpose(1, 2).reshape(weight.shape)


def write_example(folder: Path) -> Path:
    """A tiny model as llama.cpp's converter writes one, in float32."""
    path = folder / "model.gguf"
    writer = importlib.import_module("gguf").GGUFWriter(str(path), "llama")
    writer.add_vocab_size(EXAMPLE.vocab_size)
    writer.add_context_length(EXAMPLE.context)
    writer.add_block_count(EXAMPLE.n_layers)
    writer.add_embedding_length(EXAMPLE.d_model)
    writer.add_feed_forward_length(EXAMPLE.d_ff)
    writer.add_head_count(EXAMPLE.n_heads)
    writer.add_head_count_kv(EXAMPLE.n_kv_heads)
    writer.add_layer_norm_rms_eps(EXAMPLE.norm_eps)
    for name, weight in example_weights().items():
        stored = weight
        for part, heads in (("q_geo", EXAMPLE.n_heads), ("k_geo", EXAMPLE.n_kv_heads)):
            if part in name:
                stored = weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(to_gguf(name), stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
