"""The pretrained model that a command is given: what is wrong with it is wrong input, exit code 3."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from dba_core.errors import CheckpointError, DataError


@contextlib.contextmanager
def input_errors(model: Path) -> Iterator[None]:
    """Within: a model that is none, or damaged, raises DataError; one that is missing does at once."""
    if not model.exists():
        raise DataError(_missing(model))
    try:
        yield
    except CheckpointError as error:
        raise DataError(str(error)) from error


def _missing(model: Path) -> str:
    """What a path that is not there was probably meant to be."""
    text = model.as_posix()
    kinds = (
        "the folder of a Hugging Face model (config.json, *.safetensors), a .gguf file, or a checkpoint of "
        "the origin system (.pt)"
    )
    if re.match(r"[a-z0-9]+:/", text):
        return f"{text} is an address, and DBA downloads nothing; download the model first, and give {kinds}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not model.parent.exists():
        return (
            f"there is no folder {text}. If it is a model on Hugging Face: DBA downloads nothing; fetch it "
            f"first (hf download {text} --local-dir {model.name}), and give its folder: {model.name}"
        )
    return f"there is no file or folder {text}; give {kinds}"
