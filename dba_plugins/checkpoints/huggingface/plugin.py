"""Recognizes the folder of a Hugging Face model: a config.json that names one of the families read here."""

from __future__ import annotations

from pathlib import Path

from dba_core.contracts import (
    CheckpointSourcePlugin,
    NoOptions,
    OpenedSource,
    Reason,
    SourceRequest,
    Support,
)
from dba_core.documents import read_object
from dba_core.errors import CheckpointError, nearest
from dba_core.hookspecs import hookimpl
from dba_plugins.checkpoints.fields import shown
from dba_plugins.checkpoints.llama_names import FAMILIES

_CONFIG = "config.json"


class HuggingFaceSource:
    name = "huggingface"
    contract = 1
    summary = "folder of a Hugging Face Llama-family model: config.json, *.safetensors, tokenizer.json"
    options_class = NoOptions

    def supports(self, request: SourceRequest, options: NoOptions) -> Support:
        if request.is_folder and _CONFIG in request.entries:
            return _of_a_family(request.path / _CONFIG)
        return Support.no(
            Reason(
                subject="path",
                got=f"a folder that has no {_CONFIG}" if request.is_folder else "a file",
                supported=f"a folder with {_CONFIG} and *.safetensors",
                action="Give the folder of a Hugging Face model.",
            )
        )

    def build(self, request: SourceRequest, options: NoOptions) -> OpenedSource:
        from dba_plugins.checkpoints.huggingface.weights import open_folder  # which imports torch

        return open_folder(request.path)

    def example(self, folder: Path) -> Path:
        from dba_plugins.checkpoints.huggingface.weights import write_example

        return write_example(folder)


def _of_a_family(config: Path) -> Support:
    """One that cannot be read is recognized: `build` says what is wrong with it."""
    try:
        family = read_object(config, error=CheckpointError, advice="").get("model_type")
    except CheckpointError:
        return Support.yes()
    if isinstance(family, str) and family in FAMILIES:
        return Support.yes()
    near = nearest(family, FAMILIES) if isinstance(family, str) else []
    return Support.no(
        Reason(
            subject=_CONFIG,
            got="no model_type" if family is None else f"model_type {shown(family)}",
            supported=", ".join(FAMILIES),
            action=f"Did you mean {near[0]!r}?" if near else "Give a model of one of these families.",
        )
    )


@hookimpl
def dba_checkpoint_source() -> CheckpointSourcePlugin:
    return HuggingFaceSource()
