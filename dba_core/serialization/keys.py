"""The dotted keys of a config class, what each takes, and which key a wrong one was meant to be."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

import attrs

from dba_core.serialization.validators import OneOf

#: The last part of our key, and what other programs call the setting.
OTHER_NAMES = {
    "lr": ("learning_rate", "max_lr"),
    "steps": ("epochs", "num_epochs", "max_steps", "max_iters", "iterations", "iters"),
    "batch_size": ("batch", "bs"),
    "grad_accum": ("gradient_accumulation_steps",),
    "warmup_steps": ("warmup",),
    "weight_decay": ("wd",),
    "grad_clip": ("clip",),
    "n_layers": ("layers", "n_layer", "num_layers", "depth"),
    "n_heads": ("heads", "n_head", "num_heads"),
    "n_kv_heads": ("kv_heads", "num_kv_heads"),
    "d_model": ("hidden_size", "n_embd", "dim", "width"),
    "context": ("block_size", "context_length", "seq_len", "max_seq_len", "ctx"),
    "vocab_size": ("vocab",),
    "dtype": ("precision",),
    "source": ("corpus", "dataset"),
    "max_new_tokens": ("max_tokens",),
    "summarizer": ("summarizer_name", "mem_summarizer"),
}
_LIKENESS = 0.65


class OneText:
    """A class of several settings that plain data hold as one text: `parse` reads what `short` writes."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> OneText:
        """Raises ConfigError that names the part that is wrong."""
        raise NotImplementedError

    @property
    def short(self) -> str:
        """The text that `parse` reads back to an equal object."""
        raise NotImplementedError

    @classmethod
    def not_one_text(cls, value: Any) -> str:
        """The error text for plain data of another type."""
        raise NotImplementedError


def optional(hint: Any) -> Any:
    """X for `X | None`, else None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return inner[0] if len(inner) == 1 else None


def typed_fields(cls: type) -> list[tuple[attrs.Attribute[Any], Any]]:
    """The fields of an attrs class that are given to make an object, each with its type."""
    hints = typing.get_type_hints(cls)
    return [(field, hints.get(field.name, field.type)) for field in attrs.fields(cls) if field.init]


def keys_of(cls: type, *, above: str = "") -> dict[str, tuple[str, ...]]:
    """Every dotted key of an attrs class, tables before what is in them, with all values that it takes where
    they can be listed.
    """
    keys: dict[str, tuple[str, ...]] = {}
    for field, hint in typed_fields(cls):
        dotted = f"{above}.{field.name}" if above else field.name
        keys[dotted] = _values(field, hint)
        if isinstance(hint, type) and attrs.has(hint) and not issubclass(hint, OneText):
            keys.update(keys_of(hint, above=dotted))
    return keys


def meant_by(cls: type, name: str) -> list[str]:
    """The dotted keys of `cls` that are called `name`, or what `name` is called here; none is no error."""
    plain = name.lower().replace("-", "_")
    ours = next((key for key, others in OTHER_NAMES.items() if plain in others), plain)
    return [key for key in keys_of(cls) if _run_together(_split(key)[1]) == _run_together(ours)]


def unknown_key(cls: type, dotted: str) -> str | None:
    """The error text for a key that `cls` has not, None where it has it or is no table above it.

    The key may be known elsewhere: its full name is the hint then, else the likest of its neighbours.
    """
    keys = keys_of(cls)
    table, name = _split(dotted)
    beside = sorted(_split(key)[1] for key in keys if _split(key)[0] == table)
    if dotted in keys or not beside:
        return None
    meant = meant_by(cls, name)
    here = [_split(key)[1] for key in meant if _split(key)[0] == table]
    close = here or meant or difflib.get_close_matches(name, beside, cutoff=0.5)
    if not close:
        likest = difflib.get_close_matches(name, {_split(key)[1] for key in keys}, n=1, cutoff=_LIKENESS)
        close = [key for key in keys if _split(key)[1] in likest]
    hint = f" Did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
    return f"unknown key {name!r}.{hint} Allowed: {', '.join(beside)}."


def _split(dotted: str) -> tuple[str, str]:
    """The table and the last part."""
    table, _, name = dotted.rpartition(".")
    return table, name


def _run_together(name: str) -> str:
    """dmodel, d_model and D-Model are one."""
    return name.replace("_", "")


def _values(field: attrs.Attribute[Any], hint: Any) -> tuple[str, ...]:
    if bool in (hint, optional(hint)):
        return ("true", "false")
    if isinstance(field.validator, OneOf):
        return field.validator.allowed
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()
