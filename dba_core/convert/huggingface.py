"""Load the folder of a Hugging Face Llama-family model: config.json, *.safetensors, tokenizer.json.

Tensors are memory-mapped and read one by one; nothing is unpickled. Called by `load_source`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dba_core.convert.llama_config import read_llama_config
from dba_core.convert.llama_names import from_huggingface
from dba_core.convert.source import SourceModel
from dba_core.convert.tokenizer_files import read_tokenizer_config
from dba_core.errors import CheckpointError

_INDEX = "model.safetensors.index.json"


def load_huggingface(folder: Path) -> SourceModel:
    """The model in `folder`. Raises CheckpointError for files that are missing, damaged or do not belong
    together, UnsupportedError for a model of another family.
    """
    config = read_llama_config(folder / "config.json")
    weights: dict[str, Callable[[], Tensor]] = {}
    for file in _tensor_files(folder):
        for theirs in _names(file):
            ours = from_huggingface(theirs)
            if ours is not None:
                weights[ours] = functools.partial(_read, file, theirs)
    if config.model.tie_embeddings:
        weights.pop("lm_head.weight", None)  # some files hold the tied head a second time
    tokenizer = folder / "tokenizer.json"
    return SourceModel(
        name=folder.resolve().name,
        family=config.family,
        path=folder,
        config=config.model,
        weights=weights,
        frequencies=config.frequencies,
        tokenizer_json=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
        tokenizer_config=read_tokenizer_config(folder),
    )


def _tensor_files(folder: Path) -> list[Path]:
    """The files that the index names, or all there are."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is no index of tensor files ({error}); download it again"
            ) from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, which {_INDEX} names; download the rest of the model"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
        hint = (
            f"; it has {', '.join(pickled[:3])}, which are pickles and can run code when they are read. Save "
            "the model with `save_pretrained(..., safe_serialization=True)`"
            if pickled
            else ""
        )
        raise CheckpointError(f"{folder} has no *.safetensors file{hint or '; download the whole model'}")
    return files


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); it is cut off or no safetensors file. Download it again"
        ) from error


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor.float()
