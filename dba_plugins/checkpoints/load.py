"""`load_source`: the pretrained model at a path, whatever kind of file it is."""

from __future__ import annotations

from pathlib import Path

from dba_core.errors import CheckpointError
from dba_plugins.checkpoints.gguf_file import load_gguf
from dba_plugins.checkpoints.huggingface import load_huggingface
from dba_plugins.checkpoints.origin_file import SUFFIXES, load_origin
from dba_plugins.checkpoints.source import SourceModel


def load_source(path: str | Path) -> SourceModel:
    """A Hugging Face folder, a .gguf file, or a checkpoint of the origin system (.pt).

    Nothing is read into memory but names and sizes; `SourceModel.build` reads the weights. Raises
    CheckpointError for what is none of these, or is damaged, SourceError for another family of models.
    """
    given = Path(path)
    if given.is_dir():
        return load_huggingface(given)
    if given.suffix == ".gguf" and given.is_file():
        return load_gguf(given)
    if given.suffix in SUFFIXES and given.is_file():
        return load_origin(given)
    raise CheckpointError(
        f"{given} is no model; give the folder of a Hugging Face model (config.json, *.safetensors), a .gguf "
        "file, or a checkpoint of the origin system (.pt)"
    )
