"""A Llama-family `config.json`: the model in numbers, and its rotation in every spelling there is.

    model_type   llama, and mistral without a sliding window: the same computation
    refused      biases in attention or MLP, other activations, partial rotation, other families

    rope_theta, rope_scaling {"type" | "rope_type", ...}      transformers 4
    rope_parameters {"rope_type", "rope_theta", ...}          transformers 5
    rope_parameters {"full_attention": {...}, ...}            by the kind of layer; all must say the same

What is said twice of the rotation must be the same, and what it does not use may not stand there: a field
that changes nothing would be scaling that was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from dba_core.contracts import ModelDescription
from dba_core.documents import read_object
from dba_core.errors import CheckpointError, SourceError, unknown
from dba_plugins.checkpoints.fields import Fields, shown, told
from dba_plugins.checkpoints.llama_names import FAMILIES
from dba_plugins.checkpoints.rope_scaling import RopeScaling, check_kind, check_scaling, yarn_attention_factor

THETA = 10000.0
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
_ORIGINAL = "original_max_position_embeddings"
#: What each kind reads; what tells of the model's history only stands in _FOR_PEOPLE.
_READ: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": (
        "factor",
        _ORIGINAL,
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
    ),
}
_COMMON = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
_FOR_PEOPLE = (_ORIGINAL, "finetuned")


@attrs.frozen(kw_only=True)
class LlamaConfig:
    """The model (`tie_embeddings`: what the flag says) and how its rotation is scaled."""

    family: str
    model: ModelDescription
    scaling: RopeScaling


def read_llama_config(path: Path) -> LlamaConfig:
    """Read config.json. Raises CheckpointError for a file that is none, SourceError for other models."""
    fields = Fields(
        read_object(path, error=CheckpointError, advice="Download the model again"), where=str(path)
    )
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise SourceError(f"{path}: {unknown('model family', told(family), FAMILIES)}")
    _refuse(fields, family)
    n_heads, kv_heads, head_dim = _heads(fields, family)
    context = fields.whole("max_position_embeddings", default=FAMILIES[family])
    theta, scaling = read_rope(fields, context=context)
    model = ModelDescription(
        vocab_size=fields.whole("vocab_size"),
        context=context,
        n_layers=fields.whole("num_hidden_layers"),
        d_model=fields.whole("hidden_size"),
        d_ff=fields.whole("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        geo_head_dim=head_dim,
        v_head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        rope_theta=theta,
    )
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


def read_rope(config: Fields, *, context: int) -> tuple[float, RopeScaling]:
    """rope_theta, and how it is scaled. context: max_position_embeddings.

    Raises CheckpointError for fields that contradict each other or are no numbers, SourceError for a
    kind of scaling that cannot be had.
    """
    rope = _table(config)
    theta = _theta(config, rope)
    for fields in (config, rope):
        if fields.given("partial_rotary_factor") and fields.number("partial_rotary_factor") != 1:
            raise SourceError(
                f"{fields.where} asks for partial_rotary_factor={shown(fields.raw('partial_rotary_factor'))} "
                "(supported: 1.0). Give a Llama-family model that rotates all of a head"
            )
    kind = _kind(rope)
    check_kind(kind, where=rope.where)
    _refuse_unread(rope, kind)
    if kind == "default":
        return theta, RopeScaling()
    scaling = _scaling(config, rope, kind, context)
    check_scaling(scaling, theta=theta, where=rope.where)
    return theta, scaling


def _table(config: Fields) -> Fields:
    """The one table of the rotation."""
    old, new = config.part("rope_scaling"), config.part("rope_parameters")
    _check_flat(old, tables=False)
    _check_flat(new, tables=True)
    new = _same_for_all_layers(new)
    if not old.table or not new.table:
        return new if new.table else old
    both = [_plain(part.table) for part in (old, new)]
    if both[0] != both[1]:
        raise CheckpointError(
            f"{config.where}: rope_scaling says {shown(old.table)} and rope_parameters says "
            f"{shown(new.table)}; they contradict each other. Leave one of them out"
        )
    return Fields({**old.table, **new.table}, where=new.where)


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of scaling, whatever the spelling."""
    names = {"type": "rope_type"}
    plain = {names.get(key, key): value for key, value in table.items() if value is not None}
    return {"rope_type": "default"} | {key: value for key, value in plain.items() if key != "rope_theta"}


def _check_flat(rope: Fields, *, tables: bool) -> None:
    """Only plain values, lists of such, and with `tables` tables of such: all of it can be compared."""
    for name, value in rope.table.items():
        if tables and isinstance(value, dict):
            _check_flat(Fields(value, where=f"{rope.where}: {name}"), tables=False)
        elif isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
        ):
            raise rope.wrong(name, "a number, a text, true or false, or a list of such")


def _same_for_all_layers(rope: Fields) -> Fields:
    """A table for each kind of layer -> the one that they all are."""
    parts = {name: value for name, value in rope.table.items() if isinstance(value, Mapping)}
    if not parts:
        return rope
    first, *others = parts.values()
    if len(parts) < len(rope.table) or any(other != first for other in others):
        raise SourceError(
            f"{rope.where} is {shown(rope.table)}: layers that are rotated differently (supported: the same "
            "for all layers)"
        )
    return Fields(first, where=rope.where)


def _theta(config: Fields, rope: Fields) -> float:
    if rope.given("rope_theta"):
        theta = rope.number("rope_theta")
        if config.given("rope_theta") and config.number("rope_theta") != theta:
            raise CheckpointError(
                f"{config.where}: rope_theta is {config.number('rope_theta'):g} and {theta:g} beside the "
                "scaling; they contradict each other. Leave one of them out"
            )
        return theta
    return config.number("rope_theta", default=THETA)


def _kind(rope: Fields) -> str:
    names = {name: rope.text(name) for name in ("rope_type", "type") if rope.given(name)}
    if len(set(names.values())) > 1:
        raise CheckpointError(
            f"{rope.where}: rope_type is {shown(names['rope_type'])} and type is {shown(names['type'])}; "
            "they contradict each other. Leave one of them out"
        )
    return next(iter(names.values()), "default")


def _refuse_unread(rope: Fields, kind: str) -> None:
    known = {*_READ[kind], *_COMMON, *_FOR_PEOPLE}
    unread = {name: rope.raw(name) for name in rope.table if name not in known and rope.given(name)}
    neutral = {"default": ("factor",), "yarn": ("attn_factor", "extrapolation_factor")}
    for name in neutral.get(kind, ()):
        if unread.get(name) == 1:
            del unread[name]
    if unread:
        raise CheckpointError(
            f"{rope.where} holds {shown(unread)}, which RoPE scaling {kind!r} does not read; it would be "
            "lost. Leave it out, or name another kind of scaling (rope_type) if that is meant"
        )


def _scaling(config: Fields, rope: Fields, kind: str, context: int) -> RopeScaling:
    if kind == "linear":
        return RopeScaling(kind=kind, factor=rope.number("factor"))
    original = _original(config, rope, context)
    if kind == "llama3":
        return RopeScaling(
            kind=kind,
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original=original,
        )
    rope.raw("factor")  # has to be there, if only as None: then the lengths say it
    factor = rope.number("factor") if rope.given("factor") else context / original
    scales = {name: _or_zero(rope, name) for name in ("mscale", "mscale_all_dim")}
    return RopeScaling(
        kind=kind,
        factor=factor,
        original=original,
        attention_factor=(
            rope.number("attention_factor")
            if rope.given("attention_factor")
            else yarn_attention_factor(factor, **scales)
        ),
        truncate=rope.flag("truncate", default=True),
        **{name: _or_zero(rope, name) or default for name, default in _BETAS.items()},
    )


def _original(config: Fields, rope: Fields, context: int) -> float:
    """The length of before: beside the scaling, or of the whole configuration, else the model's context."""
    said = {part.where: part.number(_ORIGINAL) for part in (config, rope) if part.given(_ORIGINAL)}
    if len(set(said.values())) > 1:
        told = " and ".join(f"{value:g} in {where}" for where, value in said.items())
        raise CheckpointError(f"{_ORIGINAL} is {told}; they contradict each other. Leave one of them out")
    return next(iter(said.values()), float(context))


def _or_zero(rope: Fields, name: str) -> float:
    """A number; 0 where it is missing, None or 0, which all mean that it is not given."""
    return rope.number(name) if rope.given(name) and rope.raw(name) != 0 else 0.0
