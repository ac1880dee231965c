"""Load a checkpoint of the system that this library succeeds: one file of `torch.save`.

Its keys are `config` (a flat table) and `model` (names and tensors). Only tensors and plain data are
unpickled (`weights_only`), memory-mapped. What differs from a model of today, said here as configuration:

- its "swiglu" compared module instances and so never had a gate branch: `silu`, or `gelu` as named;
- layernorm with bias, everything else without;
- `standard`, `gqa` and `bottleneck` are the geometric path alone: `q_proj` is our `q_geo`; `rope=False` is a
  rotation by nothing;
- older files lack `decoupled_gate_proj`: the gate is then static;
- weights of its long-sequence path (`long_seq_mem_*`) stay out: exact attention does not read them, and what
  they meant there is not what a summarizer is here.

Called by `load_source`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.plugins import PluginChoice, PluginChoices
from dba_core.convert.source import SourceModel
from dba_core.errors import CheckpointError, ConfigError, UnsupportedError, unknown

SUFFIXES = (".pt", ".pth", ".bin")
FAMILY = "origin"
_MODES = {name: name for name in ("standard", "gqa", "bottleneck", "decoupled")} | {"baseline": "standard"}
_MLPS = {"swiglu": "silu", "gelu": "gelu"}
_T = TypeVar("_T")

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
    UnsupportedError for what its architecture has and ours does not.
    """
    config, tensors = _read(path)
    model = _model_config(config, path)
    tied = model.attention.tie_qk
    weights: dict[str, Callable[[], Tensor]] = {}
    dropped = set()
    for theirs, tensor in tensors.items():
        ours = _our_name(theirs)
        if ours is None:
            dropped.add(theirs.rpartition(".attn.")[2])
        elif not (tied and re.search(r"attn\.k_(sem|geo)\.weight$", ours)):
            weights[ours] = _reader(tensor, model.attention, ours)
    names = set(weights)
    null = any(".null_token." in name for name in names)
    left_out = ", ".join(sorted(dropped))
    return SourceModel(
        name=path.stem,
        family=FAMILY,
        path=path,
        config=model,
        weights=weights,
        frequencies=_no_rotation(model.attention) if model.attention.rope_table else None,
        plugins=PluginChoices(
            gate=PluginChoice(_gate(names)), null_token=PluginChoice("learned" if null else "none")
        ),
        notes=(f"left out, exact attention does not read them: {left_out}",) if dropped else (),
    )


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors and plain data ({reason}); it is cut off, no "
            "file of torch.save, or holds Python objects, which are not unpickled because that runs code"
        ) from None
    table = data if isinstance(data, Mapping) else {}
    config, tensors = table.get("config"), table.get("model")
    if not isinstance(config, Mapping) or not isinstance(tensors, Mapping):
        found = ", ".join(map(str, table)) or type(data).__name__
        raise CheckpointError(
            f"{path} holds {found}, and a checkpoint of the origin system has the tables 'config' and "
            "'model'. A Hugging Face model: give its folder, with *.safetensors"
        )
    bad = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if bad:
        raise CheckpointError(f"{path}: {bad[0]!r} in 'model' is no tensor; the file is not a checkpoint")
    return config, tensors


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


def _reader(tensor: Tensor, attention: AttentionConfig, ours: str) -> Callable[[], Tensor]:
    """float32. A null token is stored there as one row of all heads [1,1,G*D], here as [G,D]."""
    if ".null_token." in ours and tensor.dim() == 3:
        return lambda: tensor.float().reshape(attention.n_kv_heads or 1, -1)
    return tensor.float


def _gate(names: set[str]) -> str:
    if any(name.endswith("gate.decoupled_gate_proj.weight") for name in names):
        return "causal"
    return "static" if any(name.endswith("gate.decoupled_gate_logit") for name in names) else "none"


def _no_rotation(attention: AttentionConfig) -> Tensor:
    shape = attention.shape
    return torch.zeros(shape.n_kv_heads, shape.geo_head_dim // 2, dtype=torch.float64)


def _model_config(config: Mapping[str, Any], path: Path) -> ModelConfig:
    """Our configuration; fields that only concerned training or the machine are not read."""
    read = _Fields(config, path)
    if read.optional("diffusion_head", bool, default=False):
        raise UnsupportedError(f"{path} has a diffusion head, which this library does not have")
    mode = read.choice("attn_mode", _MODES)
    width, n_heads = read.required("d_model", int), read.required("n_head", int)
    kv_heads = read.optional("kv_head", int, default=n_heads) if mode == "gqa" else n_heads
    total = width if mode == "standard" else read.required("attn_dim", int)
    geo = read.required("geo_dim", int) if mode == "decoupled" else total
    sem = read.required("sem_dim", int) if mode == "decoupled" else 0
    for name, value in (("geo_dim", geo), ("attn_dim", total), ("sem_dim", sem)):
        if n_heads < 1 or value % n_heads:
            raise CheckpointError(f"{path}: {name}={value} does not divide into n_head={n_heads} heads")
    try:
        return ModelConfig(
            vocab_size=read.required("vocab_size", int),
            context=read.required("block_size", int),
            n_layers=read.required("n_layer", int),
            d_model=width,
            d_ff=read.required("d_ff", int),
            embed_dim=read.optional("embed_dim", int, default=width) or width,
            norm="layernorm",
            norm_bias=True,
            mlp=read.choice("mlp", _MLPS),
            dropout=read.optional("dropout", float, default=0.0),
            attention=AttentionConfig(
                mode="standard" if mode == "gqa" and kv_heads == n_heads else mode,
                n_heads=n_heads,
                n_kv_heads=kv_heads,
                sem_head_dim=sem // n_heads,
                geo_head_dim=geo // n_heads,
                v_head_dim=total // n_heads,
                rope_theta=read.optional("rope_base", float, default=10000.0),
                rope_table=not read.optional("rope", bool, default=True),
                tie_qk=read.optional("tie_qk", bool, default=False),
                learned_temperature=read.optional("learned_temp", bool, default=True),
            ),
            train_long_seq=LongSequenceConfig(enabled=False),
        ).resolved()
    except ConfigError as error:
        raise CheckpointError(f"{path}: its 'config' describes no model: {error}") from error


class _Fields:
    """Typed reads of the flat table."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._config, self._path = config, path

    def required(self, name: str, kind: type[_T]) -> _T:
        if self._config.get(name) is None:
            raise CheckpointError(
                f"{self._path}: 'config' has no {name!r}; it does not describe a whole model"
            )
        return self._typed(name, kind)

    def optional(self, name: str, kind: type[_T], *, default: _T) -> _T:
        return default if self._config.get(name) is None else self._typed(name, kind)

    def choice(self, name: str, allowed: Mapping[str, str]) -> str:
        given = self.required(name, str)
        if given not in allowed:
            raise UnsupportedError(f"{self._path}: {unknown(name, given, allowed)}")
        return allowed[given]

    def _typed(self, name: str, kind: type[_T]) -> _T:
        value = self._config[name]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self._path}: {name} in 'config' is {value!r}, and should be of type {kind.__name__}"
            )
        typed: _T = value
        return typed
