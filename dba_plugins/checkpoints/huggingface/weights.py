"""The folder of a Hugging Face Llama-family model: config.json, *.safetensors, tokenizer.json.

Tensors are memory-mapped and read one by one; nothing is unpickled. Which tensors are the model's:

    tie_word_embeddings   true: a head that is stored too and differs from the embedding is the model's head,
                          and where only the head is stored it is the embedding; false: both are stored
    names                 with `model.` before them, or all of them without

What the files beside them say of special tokens comes out as one document, with the same names:

    tokenizer_config.json     bos_token, eos_token, ..., chat_template
    special_tokens_map.json   the same tokens, in older folders
    chat_template.jinja       goes before the template in tokenizer_config.json
    generation_config.json    bos_token_id, eos_token_id (one or several): where generation stops
    config.json               the same, where generation_config.json does not say

`add_bos_token` and `add_eos_token` stay out of it: where there is a tokenizer.json its post-processor decides
what is added, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file

from dba_core.contracts import EXAMPLE, ModelDescription, OpenedSource, StoredWeight, example_weights
from dba_core.documents import read_object, read_text
from dba_core.errors import CheckpointError
from dba_core.printable import printable
from dba_plugins.checkpoints.huggingface.llama_config import read_llama_config
from dba_plugins.checkpoints.huggingface.tensors import read_folder
from dba_plugins.checkpoints.llama_names import from_huggingface, to_huggingface
from dba_plugins.checkpoints.rope_scaling import with_attention_factor

_EMBEDDING, _HEAD = "tok_emb.weight", "lm_head.weight"
_ADVICE = "Download it again, or remove it"
_IDS = ("bos_token_id", "eos_token_id")


def open_folder(folder: Path) -> OpenedSource:
    """The model in `folder`. Raises CheckpointError for files that are missing, damaged or do not belong
    together, SourceError for a model of another family.
    """
    config = read_llama_config(folder / "config.json")
    stored = read_folder(folder)
    model, tensors, notes = _tied(config.model, _ours(stored.tensors, folder))
    tokenizer = folder / "tokenizer.json"
    text = None
    if tokenizer.is_file():
        text = read_text(tokenizer, error=CheckpointError, advice="Download the model again")
    return OpenedSource(
        name=folder.resolve().name,
        family=config.family,
        description=model,
        weights=with_attention_factor(tensors, config.scaling.attention_factor),
        frequencies=config.scaling.table_of(model),
        tokenizer_json=text,
        tokenizer_config=read_tokenizer_config(folder),
        files=("config.json", *stored.files),
        notes=(*stored.notes, *notes, *tokenizer_notes(folder, text)),
    )


def _ours(stored: dict[str, StoredWeight], folder: Path) -> dict[str, StoredWeight]:
    """By our names. Raises CheckpointError where two of theirs mean the same weight."""
    found: dict[str, tuple[str, StoredWeight]] = {}
    for theirs, tensor in stored.items():
        ours = from_huggingface(theirs)
        if ours is None:
            continue
        if ours in found:
            raise CheckpointError(
                f"{folder} holds both {printable(found[ours][0])} and {printable(theirs)}, which are the "
                "same weight; keep the file that is the model, or download it again"
            )
        found[ours] = theirs, tensor
    return {ours: tensor for ours, (_, tensor) in found.items()}


def _tied(
    model: ModelDescription, tensors: dict[str, StoredWeight]
) -> tuple[ModelDescription, dict[str, StoredWeight], tuple[str, ...]]:
    """Whether embedding and head are one weight, and the tensors of which none is stored twice."""
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if not model.tie_embeddings or head is None:
        return model, tensors, ()
    rest = {name: tensor for name, tensor in tensors.items() if name != _HEAD}
    if embedding is None:
        note = "only lm_head is stored: it is the embedding too, as tie_word_embeddings says"
        return model, {**rest, _EMBEDDING: head}, (note,)
    if head.shape == embedding.shape and torch.equal(head.read(), embedding.read()):
        return model, rest, ()
    note = (
        "tie_word_embeddings is true, and the stored lm_head differs from the embedding: both are kept, as "
        "transformers does"
    )
    return attrs.evolve(model, tie_embeddings=False), tensors, (note,)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The document; files that are not there say nothing. Raises CheckpointError for a damaged one."""
    files = {
        name: _object(folder / name)
        for name in (
            "special_tokens_map.json",
            "tokenizer_config.json",
            "config.json",
            "generation_config.json",
        )
    }
    document: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        document |= {key: value for key, value in files[name].items() if _is_token(key) and value is not None}
    for name in ("config.json", "generation_config.json"):
        document |= {key: files[name][key] for key in _IDS if files[name].get(key) is not None}
    template = folder / "chat_template.jinja"
    if template.is_file():
        document["chat_template"] = read_text(template, error=CheckpointError, advice=_ADVICE)
    elif files["tokenizer_config.json"].get("chat_template") is not None:
        document["chat_template"] = files["tokenizer_config.json"]["chat_template"]
    return document


def tokenizer_notes(folder: Path, tokenizer_json: str | None) -> tuple[str, ...]:
    """What a user should know of the tokens: where transformers 5 does not read the file as it stands."""
    if tokenizer_json is None or '"Prepend"' not in tokenizer_json:
        return ()
    name = _object(folder / "tokenizer_config.json").get("tokenizer_class")
    if name not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return ()
    return (
        f"Tokens are those of tokenizer.json as it stands. transformers 5 reads a {name} in its own way: "
        "it gives other tokens to a text that begins with a space, and after a special token.",
    )


def _is_token(key: str) -> bool:
    return key.endswith("_token") and not key.startswith("add_")


def _object(path: Path) -> Mapping[str, Any]:
    return read_object(path, error=CheckpointError, advice=_ADVICE) if path.is_file() else {}


def write_example(folder: Path) -> Path:
    """A tiny model as transformers saves one."""
    config = {
        "model_type": "llama",
        "vocab_size": EXAMPLE.vocab_size,
        "max_position_embeddings": EXAMPLE.context,
        "num_hidden_layers": EXAMPLE.n_layers,
        "hidden_size": EXAMPLE.d_model,
        "intermediate_size": EXAMPLE.d_ff,
        "num_attention_heads": EXAMPLE.n_heads,
        "num_key_value_heads": EXAMPLE.n_kv_heads,
        "tie_word_embeddings": EXAMPLE.tie_embeddings,
    }
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {to_huggingface(name): weight for name, weight in example_weights().items()}
    save_file(weights, model / "model.safetensors")
    return model
