"""The kinds of plugin, one row each: all that the library says about a kind, it reads here.

A new kind is a row, a hook spec, a contract suite and a page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from dba_core.contracts import (
    AttentionShape,
    CachedTensor,
    DecodeRequest,
    GateRequest,
    Kind,
    KVFormatRequest,
    NullTokenRequest,
    SourceRequest,
    SummarizerRequest,
)

#: Device ("cuda:0") and, of a CUDA device that is there, its compute capability -> a request.
TypicalRequest = Callable[[str, tuple[int, int] | None], Any]


@attrs.frozen(kw_only=True)
class PluginKind:
    """name: in records, options and errors. title: on paper. group: of the entry points, whose names are
    the plugins' names. hook: what a plugin's module implements. contract: the number that a plugin states.
    previous_until: the version of dba that drops contract - 1, None where that is not taken (any more).
    request: the class of what `supports` and `build` are given. typical: makes the one that `dba plugins
    doctor` asks; None where there is none to ask. suite: `module:NAME` of the contract suite. template: of
    `dba plugins new`. per_layer: chosen for each layer of a model (`plugins` of a configuration);
    others are named where they are used, by the command `usage`, {name} for its name. tries_all: `auto` asks
    every installed plugin, those of the orders of auto first, then by name. calls: what a plugin can do,
    beside its name, contract, summary and options_class.
    """

    name: str
    title: str
    group: str
    hook: str
    contract: int
    request: type
    typical: TypicalRequest | None
    suite: str
    template: str
    per_layer: bool
    usage: str = ""
    tries_all: bool = False
    previous_until: str | None = None
    calls: tuple[str, ...] = ("supports", "build")

    def chosen_by(self, name: str) -> str:
        """The key that chooses a plugin of this kind, or the command."""
        return f"plugins.{self.name}={name}" if self.per_layer else self.usage.format(name=name)

    def example(self, name: str) -> str:
        """A command that uses it."""
        return f"dba run --plugin {self.name}={name}" if self.per_layer else self.chosen_by(name)


_SHAPE = AttentionShape(d_model=128, n_heads=4, n_kv_heads=4, sem_head_dim=8, geo_head_dim=16, v_head_dim=16)


def _typical_decode(device: str, capability: tuple[int, int] | None) -> DecodeRequest:
    return DecodeRequest(
        shape=_SHAPE,
        k_sem=CachedTensor(n_heads=4, head_dim=8, format="q4_0", qblock=32),
        k_geo=CachedTensor(n_heads=4, head_dim=16, format="q8_0", qblock=32),
        v=CachedTensor(n_heads=4, head_dim=16, format="q4_0", qblock=32),
        residual_len=32,
        batch=1,
        capacity=1024,
        has_null=False,
        device=device,
        device_capability=capability,
    )


_ROWS = (
    PluginKind(
        name="summarizer",
        title="Summarizer",
        group="dba.summarizers",
        hook="dba_summarizer",
        contract=1,
        request=SummarizerRequest,
        typical=lambda device, _: SummarizerRequest(shape=_SHAPE, mem_block=64, device=device),
        suite="dba_core.testing.layer_parts:SUMMARIZER",
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
        typical=lambda device, _: GateRequest(shape=_SHAPE, device=device),
        suite="dba_core.testing.layer_parts:GATE",
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
        typical=lambda device, _: NullTokenRequest(shape=_SHAPE, device=device),
        suite="dba_core.testing.layer_parts:NULL_TOKEN",
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
        typical=_typical_decode,
        suite="dba_core.testing.decode:DECODE",
        template="decode_backend.py.in",
        per_layer=True,
    ),
    PluginKind(
        name="kv_format",
        title="Cache format",
        group="dba.kv_formats",
        hook="dba_kv_format",
        contract=1,
        request=KVFormatRequest,
        typical=None,
        suite="dba_core.testing.kv_format:KV_FORMAT",
        template="kv_format.py.in",
        per_layer=False,
        usage="dba run --kv-policy ksem={name},kgeo={name},v={name}",
    ),
    PluginKind(
        name="checkpoint_source",
        title="Checkpoint source",
        group="dba.checkpoint_sources",
        hook="dba_checkpoint_source",
        contract=1,
        request=SourceRequest,
        typical=None,
        suite="dba_core.testing.checkpoint_source:CHECKPOINT_SOURCE",
        template="checkpoint_source.py.in",
        per_layer=False,
        tries_all=True,
        usage="dba convert MODEL --out DIR",
        calls=("supports", "build", "example"),
    ),
    PluginKind(
        name="command",
        title="Command",
        group="dba.commands",
        hook="dba_command",
        contract=1,
        request=object,
        typical=None,
        suite="dba_core.testing.command:COMMAND",
        template="command.py.in",
        per_layer=False,
        usage="dba {name}",
        calls=("run",),
    ),
)

KINDS: dict[Kind, PluginKind] = {row.name: row for row in _ROWS}


def per_layer() -> tuple[Kind, ...]:
    """The kinds that each layer of a model chooses a plugin of."""
    return tuple(name for name, kind in KINDS.items() if kind.per_layer)


def with_auto() -> tuple[Kind, ...]:
    """The kinds of which `auto` chooses a plugin."""
    return tuple(name for name, kind in KINDS.items() if kind.per_layer or kind.tries_all)
