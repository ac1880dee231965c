"""The rotation of a Llama model in a GGUF file, as llama.cpp computes it:

rope.freq_base                  theta
rope.scaling.type               none, linear, yarn; linear where it is missing
rope.scaling.factor             or, in older files, rope.scale_linear
rope.scaling.original_context_length, yarn_beta_fast, yarn_beta_slow      yarn
rope.scaling.attn_factor        of cos and sin, times what yarn itself has
rope_freqs.weight               a tensor that the frequencies are divided by first (Llama 3.1)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dba_core.errors import CheckpointError, SourceError
from dba_core.model.finite import check_finite
from dba_plugins.checkpoints.fields import Fields, shown
from dba_plugins.checkpoints.gguf_header import GgufTensor
from dba_plugins.checkpoints.rope_scaling import RopeScaling, check_kind, check_scaling, yarn_attention_factor

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


def divisors(tensors: Mapping[str, GgufTensor], head_dim: int, *, where: str) -> Tensor | None:
    """What the frequencies are divided by, float64 [head_dim/2]; None where the file does not say."""
    if {"rope_factors_long.weight", "rope_factors_short.weight"} & tensors.keys():
        check_kind("longrope", where=where)
    tensor = tensors.get(DIVISORS)
    if tensor is None:
        return None
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
