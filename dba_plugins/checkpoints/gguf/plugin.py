"""Recognizes a GGUF file by its first bytes or its name, where the package `gguf` is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dba_core.contracts import (
    CheckpointSourcePlugin,
    NoOptions,
    OpenedSource,
    Reason,
    SourceRequest,
    Support,
)
from dba_core.distribution import install_command
from dba_core.hookspecs import hookimpl


class GgufSource:
    """A file whose name ends in .gguf is recognized whatever it holds: `build` says what is wrong with it."""

    name = "gguf"
    contract = 1
    summary = "GGUF file of a Llama model, with floating-point or block-quantized weights"
    options_class = NoOptions

    def supports(self, request: SourceRequest, options: NoOptions) -> Support:
        if request.is_folder or not (request.head.startswith(b"GGUF") or request.path.suffix == ".gguf"):
            return Support.no(
                Reason(
                    subject="path",
                    got="a folder" if request.is_folder else "a file that does not begin with 'GGUF'",
                    supported="a .gguf file",
                    action="Give the file itself.",
                )
            )
        if importlib.util.find_spec("gguf") is None:
            return Support.no(
                Reason(
                    subject="a GGUF file",
                    got="no package 'gguf', which reads it",
                    supported="with it",
                    action=f"It is not installed. Install it: {install_command('gguf')}",
                )
            )
        return Support.yes()

    def build(self, request: SourceRequest, options: NoOptions) -> OpenedSource:
        from dba_plugins.checkpoints.gguf.weights import open_file  # which imports torch

        return open_file(request.path)

    def example(self, folder: Path) -> Path:
        from dba_plugins.checkpoints.gguf.weights import write_example

        return write_example(folder)


@hookimpl
def dba_checkpoint_source() -> CheckpointSourcePlugin:
    return GgufSource()
