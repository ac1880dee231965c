"""Load a checkpoint of the system that this library succeeds: one file of `torch.save`.

Its keys are `config` (a flat table) and `model` (names and tensors). What differs from a model of today, said
here as configuration:

- its "swiglu" compared module instances and so never had a gate branch: `silu`, or `gelu` as named;
- layernorm with bias, everything else without;
- `standard`, `gqa` and `bottleneck` are the geometric path alone: `q_proj` is our `q_geo`; `rope=False` is a
  rotation by nothing;
- older files lack `decoupled_gate_proj`: the gate is then static;
- weights of its long-sequence path (`long_seq_mem_*`) stay out: exact attention does not read them, and what
  they meant there is not what a summarizer is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import CheckpointError, ConfigError, SourceError, unknown
from dba_core.printable import printable
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.checkpoints.fields import Fields, told
from dba_plugins.checkpoints.origin_pickle import read_tables
from dba_plugins.checkpoints.source import SourceModel, SourceTensor, as_it_is

SUFFIXES = (".pt", ".pth", ".bin")
FAMILY = "origin"
_MODES = {name: name for name in ("standard", "gqa", "bottleneck", "decoupled")} | {"baseline": "standard"}
_MLPS = {"swiglu": "silu", "gelu": "gelu"}

_ATTENTION = {
    "q_proj.weight": "q_geo.weight",
    "k_proj.weight": "k_geo.weight",
    "k_null": "null_token.k_geo_null",
    "k_sem_null": "null_token.k_sem_null",
    "k_geo_null": "null_token.k_geo_null",
    "v_null": "null_token.v_null",
    "decoupled_gate_logit": "gate.decoupled_gate_logit",
    "decoupled_gate_proj.weight": "gate.decoupled_gate_proj.weight",
}
_FEED_FORWARD = {"fc1.weight": "w_up.weight", "proj.weight": "w_down.weight"}


def load_origin(path: Path) -> SourceModel:
    """The model in one file. Raises CheckpointError for a file that is damaged or is none of that system's,
    SourceError for what its architecture has and ours does not.
    """
    config, tensors = read_tables(path)
    model = _model_config(config, path)
    tied = model.attention.tie_qk
    weights: dict[str, SourceTensor] = {}
    dropped = set()
    for theirs, tensor in tensors.items():
        ours = _our_name(theirs)
        if ours is None:
            dropped.add(theirs.rpartition(".attn.")[2])
        elif not (tied and re.search(r"attn\.k_(sem|geo)\.weight$", ours)):
            weights[ours] = _source_tensor(tensor, model.attention, ours, theirs, path)
    names = set(weights)
    null = any(".null_token." in name for name in names)
    left_out = ", ".join(sorted(dropped))
    source = SourceModel(
        name=path.stem,
        family=FAMILY,
        path=path,
        config=model,
        weights=weights,
        plugins=PluginChoices(
            gate=PluginChoice(_gate(names)), null_token=PluginChoice("learned" if null else "none")
        ),
        files=(path.name,),
        notes=(f"left out, exact attention does not read them: {left_out}",) if dropped else (),
    ).checked()
    frequencies = _no_rotation(model.attention) if model.attention.rope_table else None
    return attrs.evolve(source, frequencies=frequencies)


def _our_name(name: str) -> str | None:
    """Ours, None for what stays out, the name itself where it is not known."""
    match = re.fullmatch(r"(blocks\.\d+\.)(attn|ff)\.(.+)", name)
    if match is None:
        return name
    block, part, rest = match.groups()
    if part == "ff":
        return f"{block}ff.{_FEED_FORWARD.get(rest, rest)}"
    if rest.startswith("long_seq_mem_"):
        return None
    return f"{block}attn.{_ATTENTION.get(rest, rest)}"


def _source_tensor(
    tensor: Tensor, attention: AttentionConfig, ours: str, theirs: str, path: Path
) -> SourceTensor:
    """float32. A null token is stored there as one row of all heads [1,1,G*D], here as [G,D]."""
    shape, heads = tuple(tensor.shape), attention.n_kv_heads or 1
    if ".null_token." in ours and len(shape) == 3 and shape[:2] == (1, 1) and not shape[2] % heads:
        shape = (heads, shape[2] // heads)
    return SourceTensor(
        name=printable(theirs),
        where=str(path),
        shape=shape,
        read=tensor.detach().float,
        arrange=as_it_is if shape == tuple(tensor.shape) else lambda stored: stored.reshape(shape),
    )


def _gate(names: set[str]) -> str:
    if any(name.endswith("gate.decoupled_gate_proj.weight") for name in names):
        return "causal"
    return "static" if any(name.endswith("gate.decoupled_gate_logit") for name in names) else "none"


def _no_rotation(attention: AttentionConfig) -> Tensor:
    shape = attention.shape
    return torch.zeros(shape.n_kv_heads, shape.geo_head_dim // 2, dtype=torch.float64)


def _model_config(config: Mapping[str, Any], path: Path) -> ModelConfig:
    """Our configuration; fields that only concerned training or the machine are not read."""
    given = {name: value for name, value in config.items() if value is not None}
    read = Fields(given, where=f"{path}: 'config'")
    if read.flag("diffusion_head", default=False):
        raise SourceError(f"{path} has a diffusion head, which this library does not have")
    mode = _choice(read, "attn_mode", _MODES)
    width, n_heads = read.whole("d_model"), read.whole("n_head")
    kv_heads = read.whole("kv_head", default=n_heads) if mode == "gqa" else n_heads
    total = width if mode == "standard" else read.whole("attn_dim")
    geo = read.whole("geo_dim") if mode == "decoupled" else total
    sem = read.whole("sem_dim") if mode == "decoupled" else 0
    for name, value in (("geo_dim", geo), ("attn_dim", total), ("sem_dim", sem)):
        if value % n_heads:
            raise CheckpointError(f"{path}: {name}={value} does not divide into n_head={n_heads} heads")
    try:
        return ModelConfig(
            vocab_size=read.whole("vocab_size"),
            context=read.whole("block_size"),
            n_layers=read.whole("n_layer"),
            d_model=width,
            d_ff=read.whole("d_ff"),
            embed_dim=read.whole("embed_dim", default=width, least=0) or width,
            norm="layernorm",
            norm_bias=True,
            mlp=_choice(read, "mlp", _MLPS),
            dropout=read.number("dropout", default=0.0, zero=True),
            attention=AttentionConfig(
                mode="standard" if mode == "gqa" and kv_heads == n_heads else mode,
                n_heads=n_heads,
                n_kv_heads=kv_heads,
                sem_head_dim=sem // n_heads,
                geo_head_dim=geo // n_heads,
                v_head_dim=total // n_heads,
                rope_theta=read.number("rope_base", default=10000.0),
                rope_table=not read.flag("rope", default=True),
                tie_qk=read.flag("tie_qk", default=False),
                learned_temperature=read.flag("learned_temp", default=True),
            ),
            train_long_seq=LongSequenceConfig(enabled=False),
        ).resolved()
    except ConfigError as error:
        raise CheckpointError(f"{path}: its 'config' describes no model: {error}") from error


def _choice(read: Fields, name: str, allowed: Mapping[str, str]) -> str:
    given = read.text(name)
    if given not in allowed:
        raise SourceError(f"{read.where}: {unknown(name, told(given), allowed)}")
    return allowed[given]
