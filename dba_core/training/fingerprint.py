"""What the numbers of a training run depend on, as plain data: a resumed run must agree in all of it.

Left out: what may change between the parts of a run without changing a number (names, folders, how often to
log or to save, everything that happens after training). Stored in every checkpoint; weights are taken only by
a run whose recorded configuration says the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dba_core.attention.module import DecoupledAttention
from dba_core.config.long_sequence import MEM_SUMMARIZER
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.data.corpus import Corpus
from dba_core.errors import RecordMismatchError
from dba_core.model.language_model import LanguageModel
from dba_core.training.distributed import World

#: Training fields that change no number.
FREE_TRAINING_FIELDS = ("log_every", "checkpoint_every", "checkpoint_minutes")
#: The kinds of plugin that are part of the trained model.
TRAINED_KINDS: tuple[Kind, ...] = ("summarizer", "gate", "null_token")


def fingerprint(model: LanguageModel, corpus: Corpus, config: RunConfig, world: World) -> dict[str, Any]:
    """Plain data (JSON) that is equal exactly for runs with the same numbers on the same machine."""
    settings = settings_fingerprint(
        config, settings=model.config, attentions=model.attentions, device=world.device.type
    )
    return {**settings, "processes": world.size, "data": corpus_fingerprint(corpus)}


def settings_fingerprint(
    config: RunConfig, *, settings: ModelConfig, attentions: Sequence[DecoupledAttention], device: str
) -> dict[str, Any]:
    """The part of it that needs neither the corpus nor the other processes.

    settings: of the model, resolved; attentions: its layers, with the plugins that they have. device: `cpu`
    or `cuda`, where the weights are from: numbers of the long-sequence path that are None are chosen for it.
    """
    long_sequence = settings.train_long_seq.resolved(context=settings.context, device=device)
    model = attrs.evolve(settings, train_long_seq=long_sequence).to_dict()
    # As in every checkpoint since the first; `plugins` says which one it is.
    model["train_long_seq"][MEM_SUMMARIZER] = None
    training = config.training.to_dict()
    data = {
        "seed": config.seed,
        "dtype": config.dtype,
        "device": device,
        "model": model,
        "training": {key: value for key, value in training.items() if key not in FREE_TRAINING_FIELDS},
        "plugins": _plugins(attentions),
    }
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain


def corpus_fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What the numbers of a run owe to its corpus: the text's hash and how its tokens are split."""
    return {
        "sha256": corpus.sha256,
        "train_tokens": len(corpus.train),
        "held_out_tokens": len(corpus.held_out),
        "vocab_size": corpus.tokenizer.vocab_size,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """One sentence for every dotted key in which the two differ."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r} and is now {new!r}"


def unlike(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for every key of `now` that a checkpoint's fingerprint contradicts.

    A setting that the version which wrote the checkpoint did not have is no contradiction; a plugin is.
    """
    for key in sorted({*stored} & {*now}):
        old, new = stored[key], now[key]
        if key != "plugins" and isinstance(old, dict) and isinstance(new, dict):
            both = {*old} & {*new}
            old, new = ({name: each[name] for name in both} for each in (old, new))
        yield from differences({key: old}, {key: new})


def check_written_by(path: Path, stored: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise RecordMismatchError unless the checkpoint at `path`, of fingerprint `stored`, is of run `now`.

    A checkpoint without a fingerprint is taken: versions before it wrote none.
    """
    changed = [] if stored is None else list(unlike(stored, now))
    if changed:
        raise RecordMismatchError(
            f"{path} was not written by the configuration beside it: {'; '.join(changed)}. Put the "
            "checkpoint back that belongs to this run, or give the run that this one belongs to"
        )


def _plugins(attentions: Sequence[DecoupledAttention]) -> dict[str, Any]:
    """The first layer's plugins and, under `layers`, those of every layer that has others."""
    layers = []
    for attention in attentions:
        found = attention.selections
        chosen = {kind: found[kind].choice() for kind in TRAINED_KINDS if kind in found}
        layers.append({kind: {"name": it.name, "options": it.options} for kind, it in chosen.items()})
    first = layers[0]
    differing = {str(layer): chosen for layer, chosen in enumerate(layers) if chosen != first}
    return {**first, "layers": differing} if differing else first
