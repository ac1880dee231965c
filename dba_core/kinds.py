"""The kinds of plugin, one row each: all that the library says about a kind, it reads here.

A new kind is a row, a hook spec, a contract suite and a page.
"""

from __future__ import annotations

import attrs

from dba_core.contracts import (
    DecodeRequest,
    GateRequest,
    NullTokenRequest,
    SourceRequest,
    SummarizerRequest,
)


@attrs.frozen(kw_only=True)
class PluginKind:
    """name: in records, options and errors. title: on paper. group: of the entry points, whose names are
    the plugins' names. hook: what a plugin's module implements. contract: the number that a plugin states.
    previous_until: the version of dba that drops contract - 1, None where that is not taken (any more).
    request: the class of what `supports` and `build` are given. suite: `module:NAME` of the contract suite.
    template: of `dba plugins new`. per_layer: chosen for each layer of a model (`--plugin`, `plugins` of a
    configuration); others are named where they are used.
    """

    name: str
    title: str
    group: str
    hook: str
    contract: int
    request: type
    suite: str
    template: str
    per_layer: bool
    previous_until: str | None = None


_ROWS = (
    PluginKind(
        name="summarizer",
        title="Summarizer",
        group="dba.summarizers",
        hook="dba_summarizer",
        contract=1,
        request=SummarizerRequest,
        suite="dba_core.testing.summarizer:SUMMARIZER",
        template="summarizer.py.in",
        per_layer=True,
    ),
    PluginKind(
        name="gate",
        title="Gate",
        group="dba.gates",
        hook="dba_gate",
        contract=1,
        request=GateRequest,
        suite="dba_core.testing.gate:GATE",
        template="gate.py.in",
        per_layer=True,
    ),
    PluginKind(
        name="null_token",
        title="Null token",
        group="dba.null_tokens",
        hook="dba_null_token",
        contract=1,
        request=NullTokenRequest,
        suite="dba_core.testing.null_token:NULL_TOKEN",
        template="null_token.py.in",
        per_layer=True,
    ),
    PluginKind(
        name="decode_backend",
        title="Decode backend",
        group="dba.decode_backends",
        hook="dba_decode_backend",
        contract=1,
        request=DecodeRequest,
        suite="dba_core.testing.decode_long:DECODE",
        template="decode_backend.py.in",
        per_layer=True,
    ),
    PluginKind(
        name="checkpoint_source",
        title="Checkpoint source",
        group="dba.checkpoint_sources",
        hook="dba_checkpoint_source",
        contract=1,
        request=SourceRequest,
        suite="dba_core.testing.checkpoint_source:CHECKPOINT_SOURCE",
        template="checkpoint_source.py.in",
        per_layer=False,
    ),
)

KINDS: dict[str, PluginKind] = {row.name: row for row in _ROWS}
