"""Load the folder of a Hugging Face Llama-family model: config.json, *.safetensors, tokenizer.json.

Tensors are memory-mapped and read one by one; nothing is unpickled. Which tensors are the model's:

tie_word_embeddings   true: a head that is stored too and differs from the embedding is the model's head, and
                      where only the head is stored it is the embedding; false: both are stored
names                 with `model.` before them, or all of them without
"""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from dba_core.config.model import ModelConfig
from dba_core.documents import read_text
from dba_core.errors import CheckpointError
from dba_core.printable import printable
from dba_plugins.checkpoints.llama_config import read_llama_config
from dba_plugins.checkpoints.llama_names import from_huggingface
from dba_plugins.checkpoints.rope_scaling import per_head
from dba_plugins.checkpoints.safetensors_folder import StoredTensor, read_folder
from dba_plugins.checkpoints.source import PLAIN, SourceModel, SourceTensor, with_attention_factor
from dba_plugins.checkpoints.tokenizer_files import read_tokenizer_config, tokenizer_notes

_EMBEDDING, _HEAD = "tok_emb.weight", "lm_head.weight"


def load_huggingface(folder: Path) -> SourceModel:
    """The model in `folder`. Raises CheckpointError for files that are missing, damaged or do not belong
    together, SourceError for a model of another family.
    """
    config = read_llama_config(folder / "config.json")
    stored = read_folder(folder)
    model, tensors, notes = _tied(config.model, _ours(stored.tensors, folder))
    weights = {
        name: SourceTensor(name=tensor.name, where=str(tensor.file), shape=tensor.shape, read=tensor.read)
        for name, tensor in tensors.items()
    }
    tokenizer = folder / "tokenizer.json"
    text = None
    if tokenizer.is_file():
        text = read_text(tokenizer, error=CheckpointError, advice="Download the model again")
    source = SourceModel(
        name=folder.resolve().name,
        family=config.family,
        path=folder,
        config=model,
        weights=with_attention_factor(weights, config.scaling.attention_factor),
        plugins=PLAIN,
        tokenizer_json=text,
        tokenizer_config=read_tokenizer_config(folder),
        files=("config.json", *stored.files),
        notes=(*stored.notes, *notes, *tokenizer_notes(folder, text)),
    ).checked()
    attention = model.attention.shape
    frequencies = config.scaling.frequencies(attention.geo_head_dim, model.attention.rope_theta)
    return attrs.evolve(source, frequencies=per_head(frequencies, attention.n_kv_heads))


def _ours(stored: dict[str, StoredTensor], folder: Path) -> dict[str, StoredTensor]:
    """By our names. Raises CheckpointError where two of theirs mean the same weight."""
    found: dict[str, tuple[str, StoredTensor]] = {}
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
    model: ModelConfig, tensors: dict[str, StoredTensor]
) -> tuple[ModelConfig, dict[str, StoredTensor], tuple[str, ...]]:
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
