"""The rotation of a Llama-family config.json, in every spelling that has been written:

    rope_theta, rope_scaling {"type" | "rope_type", ...}      transformers 4
    rope_parameters {"rope_type", "rope_theta", ...}          transformers 5
    rope_parameters {"full_attention": {...}, ...}            by the kind of layer; all must say the same

What is said twice must be the same, and what the rotation does not use may not stand there: a field that
changes nothing would be scaling that was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dba_core.errors import CheckpointError, SourceError
from dba_plugins.checkpoints.fields import Fields, shown
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
