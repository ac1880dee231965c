"""What the numbers of a training run depend on, as plain data: a resumed run must agree in all of it.

Left out: what may change between the parts of a run without changing a number (names, folders, how often to
log or to save, everything that happens after training). Called by training.loop; stored in every
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.data.corpus import Corpus
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Selection
from dba_core.training.distributed import World

#: Training fields that change no number.
FREE_TRAINING_FIELDS = ("log_every", "checkpoint_every")
#: The kinds of plugin that are part of the trained model.
TRAINED_KINDS: tuple[Kind, ...] = ("summarizer", "gate", "null_token")


def fingerprint(model: LanguageModel, corpus: Corpus, config: RunConfig, world: World) -> dict[str, Any]:
    """Plain data (JSON) that is equal exactly for runs with the same numbers on the same machine."""
    long_sequence = model.config.train_long_seq.resolved(
        context=model.config.context, device=world.device.type
    )
    model_data = attrs.evolve(
        model.config, train_long_seq=attrs.evolve(long_sequence, mem_summarizer=None)
    ).to_dict()
    training = config.training.to_dict()
    data = {
        "seed": config.seed,
        "dtype": config.dtype,
        "device": world.device.type,
        "processes": world.size,
        "model": model_data,
        "training": {key: value for key, value in training.items() if key not in FREE_TRAINING_FIELDS},
        "plugins": _plugins(model),
        "data": _content(corpus),
    }
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain


def fingerprint_hash(data: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """One sentence for every dotted key in which the two differ."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r} and is now {new!r}"


def _plugins(model: LanguageModel) -> dict[str, Any]:
    """The first layer's plugins and, under `layers`, those of every layer that has others."""
    first, *others = (_of_layer(attention.selections) for attention in model.attentions)
    differing = {str(layer): chosen for layer, chosen in enumerate(others, 1) if chosen != first}
    return {**first, "layers": differing} if differing else first


def _of_layer(selections: Mapping[Kind, Selection]) -> dict[str, Any]:
    chosen = {kind: selections[kind].choice() for kind in TRAINED_KINDS if kind in selections}
    return {kind: {"name": choice.name, "options": choice.options} for kind, choice in chosen.items()}


def _content(corpus: Corpus) -> dict[str, Any]:
    return {
        "sha256": corpus.sha256,
        "train_tokens": len(corpus.train),
        "held_out_tokens": len(corpus.held_out),
        "vocab_size": corpus.tokenizer.vocab_size,
    }
