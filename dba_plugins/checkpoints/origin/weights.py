"""A checkpoint of the system that this library succeeds: one file of `torch.save`.

Its keys are `config` (a flat table) and `model` (names and tensors). What differs from a model of today, said
here as a description:

- its "swiglu" compared module instances and so never had a gate branch: `silu`, or `gelu` as named;
- layernorm with bias, everything else without;
- `standard`, `gqa` and `bottleneck` are the geometric path alone: `q_proj` is our `q_geo`; `rope=False` is a
  rotation by nothing;
- older files lack `decoupled_gate_proj`: the gate is then static;
- weights of its long-sequence path (`long_seq_mem_*`) stay out: exact attention does not read them, and what
  they meant there is not what a summarizer is here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from dba_core.contracts import EXAMPLE, ModelDescription, OpenedSource, StoredWeight, example_weights
from dba_core.errors import CheckpointError, SourceError, unknown
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import Fields, told
from dba_plugins.checkpoints.origin.archive import read_tables

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
#: Keys that are stored although they are the queries.
_TIED = r"attn\.k_(sem|geo)\.weight$"
_FEED_FORWARD = {"fc1.weight": "w_up.weight", "proj.weight": "w_down.weight"}


def open_file(path: Path) -> OpenedSource:
    """The model in one file. Raises CheckpointError for a file that is damaged or is none of that system's,
    SourceError for what its architecture has and ours does not.
    """
    config, tensors = read_tables(path)
    given = {name: value for name, value in config.items() if value is not None}
    read = Fields(given, where=f"{path}: 'config'")
    weights: dict[str, StoredWeight] = {}
    dropped = set()
    for theirs, tensor in tensors.items():
        ours = _our_name(theirs)
        if ours is None:
            dropped.add(theirs.rpartition(".attn.")[2])
        else:
            weights[ours] = _stored(tensor, theirs, path)
    model = describe(read, names=weights)
    if model.tie_qk:
        weights = {name: each for name, each in weights.items() if not re.search(_TIED, name)}
    left_out = ", ".join(sorted(dropped))
    return OpenedSource(
        name=path.stem,
        family=FAMILY,
        description=model,
        weights={name: _by_heads(name, each, model.n_kv_heads) for name, each in weights.items()},
        frequencies=None if read.flag("rope", default=True) else functools.partial(_no_rotation, model),
        files=(path.name,),
        notes=(f"left out, exact attention does not read them: {left_out}",) if dropped else (),
    )


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


def _stored(tensor: Tensor, theirs: str, path: Path) -> StoredWeight:
    return StoredWeight(
        name=printable(theirs), where=str(path), shape=tuple(tensor.shape), read=tensor.detach().float
    )


def _by_heads(name: str, weight: StoredWeight, heads: int) -> StoredWeight:
    """A null token is stored there as one row of all heads [1,1,G*D], here as [G,D]."""
    stored = weight.shape
    if ".null_token." not in name or len(stored) != 3 or stored[:2] != (1, 1) or stored[2] % heads:
        return weight
    shape = (heads, stored[2] // heads)
    return attrs.evolve(weight, shape=shape, arrange=lambda row: row.reshape(shape))


def _gate(names: Collection[str]) -> str:
    if any(name.endswith("gate.decoupled_gate_proj.weight") for name in names):
        return "causal"
    return "static" if any(name.endswith("gate.decoupled_gate_logit") for name in names) else "none"


def _no_rotation(model: ModelDescription) -> Tensor:
    return torch.zeros(model.n_kv_heads, model.geo_head_dim // 2, dtype=torch.float64)


def describe(read: Fields, *, names: Collection[str]) -> ModelDescription:
    """Our numbers; fields that only concerned training or the machine are not read. names: ours, of the
    weights.
    """
    if read.flag("diffusion_head", default=False):
        raise SourceError(f"{read.where}: it has a diffusion head, which this library does not have")
    mode = _choice(read, "attn_mode", _MODES)
    width, n_heads = read.whole("d_model"), read.whole("n_head")
    total = width if mode == "standard" else read.whole("attn_dim")
    geo = read.whole("geo_dim") if mode == "decoupled" else total
    sem = read.whole("sem_dim") if mode == "decoupled" else 0
    for name, value in (("geo_dim", geo), ("attn_dim", total), ("sem_dim", sem)):
        if value % n_heads:
            raise CheckpointError(f"{read.where}: {name}={value} does not divide into n_head={n_heads} heads")
    return ModelDescription(
        vocab_size=read.whole("vocab_size"),
        context=read.whole("block_size"),
        n_layers=read.whole("n_layer"),
        d_model=width,
        d_ff=read.whole("d_ff"),
        n_heads=n_heads,
        n_kv_heads=read.whole("kv_head", default=n_heads) if mode == "gqa" else n_heads,
        sem_head_dim=sem // n_heads,
        geo_head_dim=geo // n_heads,
        v_head_dim=total // n_heads,
        embed_dim=read.whole("embed_dim", default=width, least=0) or width,
        norm="layernorm",
        norm_bias=True,
        mlp=_choice(read, "mlp", _MLPS),
        dropout=read.number("dropout", default=0.0, zero=True),
        rope_theta=read.number("rope_base", default=10000.0),
        tie_qk=read.flag("tie_qk", default=False),
        learned_temperature=read.flag("learned_temp", default=True),
        gate=_gate(names),
        null_token="learned" if any(".null_token." in name for name in names) else "none",
    )


def _choice(read: Fields, name: str, allowed: Mapping[str, str]) -> str:
    given = read.text(name)
    if given not in allowed:
        raise SourceError(f"{read.where}: {unknown(name, told(given), allowed)}")
    return allowed[given]


def write_example(folder: Path) -> Path:
    """A tiny decoupled model as that system saved one."""
    config = {
        "vocab_size": EXAMPLE.vocab_size,
        "block_size": EXAMPLE.context,
        "n_layer": EXAMPLE.n_layers,
        "n_head": EXAMPLE.n_heads,
        "d_model": EXAMPLE.d_model,
        "d_ff": EXAMPLE.d_ff,
        "attn_mode": "decoupled",
        "attn_dim": EXAMPLE.d_model,
        "sem_dim": 4 * EXAMPLE.n_heads,
        "geo_dim": 8 * EXAMPLE.n_heads,
        "learned_temp": False,
        "mlp": "gelu",
    }
    described = describe(Fields(config, where="the example"), names=())
    parts = {ours: theirs for theirs, ours in _FEED_FORWARD.items()}
    weights = {}
    for name, weight in example_weights(described).items():
        block, _, part = name.rpartition(".ff.")
        weights[f"{block}.ff.{parts[part]}" if block else name] = weight
    path = folder / "model.pt"
    torch.save({"config": config, "model": weights}, path)
    return path
