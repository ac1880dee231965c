"""The dotted keys of a config class, what each takes, and which key a wrong one was meant to be."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any

import attrs

from dba_core.serialization.exact import ALLOWED, OneText, optional

#: What other programs call our settings -> the last part of our key.
OTHER_NAMES = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "epochs": "steps",
    "num_epochs": "steps",
    "max_steps": "steps",
    "max_iters": "steps",
    "iterations": "steps",
    "iters": "steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "gradient_accumulation_steps": "grad_accum",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "clip": "grad_clip",
    "layers": "n_layers",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "depth": "n_layers",
    "heads": "n_heads",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "num_kv_heads": "n_kv_heads",
    "hidden_size": "d_model",
    "n_embd": "d_model",
    "dim": "d_model",
    "width": "d_model",
    "block_size": "context",
    "context_length": "context",
    "seq_len": "context",
    "max_seq_len": "context",
    "ctx": "context",
    "vocab": "vocab_size",
    "precision": "dtype",
    "corpus": "source",
    "dataset": "source",
    "max_tokens": "max_new_tokens",
    "summarizer_name": "summarizer",
    "mem_summarizer": "summarizer",
}
_LIKENESS = 0.65


@attrs.frozen(kw_only=True)
class Key:
    """One key. hint: its type. values: all that it takes, as they are written, where they can be listed."""

    dotted: str
    hint: Any
    values: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part."""
        return self.dotted.rpartition(".")[2]


def keys_of(cls: type, *, above: str = "") -> dict[str, Key]:
    """Every key of an attrs class by its dotted name, tables before what is in them."""
    return {key.dotted: key for key in _walk(cls, above)}


def meant_by(cls: type, name: str) -> list[str]:
    """The dotted keys of `cls` that are called `name`, or what `name` is called here; none is no error."""
    plain = name.lower().replace("-", "_")
    wanted = _run_together(OTHER_NAMES.get(plain, plain))
    return [key.dotted for key in keys_of(cls).values() if _run_together(key.name) == wanted]


def unknown_key(cls: type, dotted: str) -> str | None:
    """The error text for a key that `cls` has not, None where it has it or is no table above it.

    The key may be known elsewhere: its full name is the hint then, else the likest of its neighbours.
    """
    keys = keys_of(cls)
    table, _, name = dotted.rpartition(".")
    beside = sorted(key.name for key in keys.values() if key.dotted.rpartition(".")[0] == table)
    if dotted in keys or not beside:
        return None
    meant = meant_by(cls, name)
    here = [key.rpartition(".")[2] for key in meant if key.rpartition(".")[0] == table]
    close = here or meant or _like(name, beside) or _like_elsewhere(name, keys)
    hint = f" Did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
    return f"unknown key {name!r}.{hint} Allowed: {', '.join(beside)}."


def _run_together(name: str) -> str:
    """dmodel, d_model and D-Model are one."""
    return name.replace("_", "")


def _like(name: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)


def _like_elsewhere(name: str, keys: dict[str, Key]) -> list[str]:
    names = {key.name for key in keys.values()}
    likest = difflib.get_close_matches(name, names, n=1, cutoff=_LIKENESS)
    return [key.dotted for key in keys.values() if key.name in likest]


def _walk(cls: type, above: str) -> Iterator[Key]:
    hints = typing.get_type_hints(cls)
    for field in attrs.fields(cls):
        if not field.init:
            continue
        hint = hints.get(field.name, field.type)
        dotted = f"{above}.{field.name}" if above else field.name
        yield Key(dotted=dotted, hint=hint, values=_values(hint, field.metadata.get(ALLOWED, ())))
        if isinstance(hint, type) and attrs.has(hint) and not issubclass(hint, OneText):
            yield from _walk(hint, dotted)


def _values(hint: Any, allowed: tuple[Any, ...]) -> tuple[str, ...]:
    if bool in (hint, optional(hint)):
        return ("true", "false")
    if typing.get_origin(hint) is typing.Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(map(str, allowed))
