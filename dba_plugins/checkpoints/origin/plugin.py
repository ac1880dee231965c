"""Recognizes a checkpoint of the origin system by its name: a file of `torch.save`."""

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
from dba_core.hookspecs import hookimpl

SUFFIXES = (".pt", ".pth", ".bin")


class OriginSource:
    name = "origin"
    contract = 1
    summary = "checkpoint of the system that this library succeeds: one file of torch.save (.pt)"
    options_class = NoOptions

    def supports(self, request: SourceRequest, options: NoOptions) -> Support:
        if not request.is_folder and request.path.suffix in SUFFIXES:
            return Support.yes()
        return Support.no(
            Reason(
                subject="path",
                got="a folder" if request.is_folder else f"a file whose name ends in {request.path.suffix!r}",
                supported=f"a file whose name ends in {', '.join(SUFFIXES)}",
                action="Give the file that torch.save wrote.",
            )
        )

    def build(self, request: SourceRequest, options: NoOptions) -> OpenedSource:
        from dba_plugins.checkpoints.origin.weights import open_file  # which imports torch

        return open_file(request.path)

    def example(self, folder: Path) -> Path:
        from dba_plugins.checkpoints.origin.weights import write_example

        return write_example(folder)


@hookimpl
def dba_checkpoint_source() -> CheckpointSourcePlugin:
    return OriginSource()
