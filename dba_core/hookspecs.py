"""The hooks, one per kind. A plugin is a module that implements one of them with `@hookimpl` and names the
module in the kind's entry-point group; the hook takes nothing and returns the plugin (`contracts.Plugin`).

A plugin module is imported only when it is selected (or asked about by name), so it may import torch at top.
"""

from __future__ import annotations

from typing import Any

import pluggy

from dba_core.command import Command
from dba_core.contracts import (
    CheckpointSourcePlugin,
    DecodeBackendPlugin,
    GatePlugin,
    KVFormatPlugin,
    NullTokenPlugin,
    SummarizerPlugin,
    WeightFormatPlugin,
)

PROJECT_NAME = "dba"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def dba_summarizer() -> SummarizerPlugin:  # type: ignore[empty-body]
    """Return the memory summarizer that this module provides."""


@hookspec
def dba_gate() -> GatePlugin:  # type: ignore[empty-body]
    """Return the semantic/geometric gate that this module provides."""


@hookspec
def dba_null_token() -> NullTokenPlugin:  # type: ignore[empty-body]
    """Return the null-token provider that this module provides."""


@hookspec
def dba_checkpoint_source() -> CheckpointSourcePlugin:  # type: ignore[empty-body]
    """Return the checkpoint source that this module provides."""


@hookspec
def dba_decode_backend() -> DecodeBackendPlugin:  # type: ignore[empty-body]
    """Return the decode backend that this module provides."""


@hookspec
def dba_kv_format() -> KVFormatPlugin:  # type: ignore[empty-body]
    """Return the cache format that this module provides; import no torch for it."""


@hookspec
def dba_weight_format() -> WeightFormatPlugin:  # type: ignore[empty-body]
    """Return the weight format that this module provides; import no torch for it."""


@hookspec
def dba_command() -> Command[Any]:  # type: ignore[empty-body]
    """Return the command that this module provides."""
