"""The kinds of plugin, one row each: all that the library says about a kind, it reads here.

A new kind is a row, a hook spec, a contract suite and a page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

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
    WeightRequest,
)

#: Device ("cuda:0") and, of a CUDA device that is there, its compute capability -> a request.
TypicalRequest = Callable[[str, tuple[int, int] | None], Any]


def _named(text: str) -> Any:
    """A field whose default is `text` with the kind's name in it."""
    return attrs.field(default=attrs.Factory(lambda kind: text.format(kind.name), takes_self=True))


@attrs.frozen(kw_only=True)
class PluginKind:
    """name: in records, options and errors. title: on paper. contract: the number that a plugin states.
    request: the class of what `supports` and `build` are given. typical: makes the one that `dba plugins
    doctor` asks; None where there is none to ask. suite: `module:NAME` of the contract suite.

    per_layer: chosen for each layer of a model (`plugins` of a configuration); others are named where they
    are used, by the command `usage`, {name} for its name. auto: whom `auto` asks, nobody, those of the orders
    of auto, or after these every installed plugin by name. previous_until: the version of dba that drops
    contract - 1, None where that is not taken (any more). calls: what a plugin can do, beside its name,
    contract, summary and options_class. group: of the entry points, whose names are the plugins' names.
    hook: what a plugin's module implements. template: of `dba plugins new`.
    """

    name: str
    title: str
    contract: int
    request: type
    typical: TypicalRequest | None = None
    suite: str
    per_layer: bool = False
    usage: str = ""
    auto: Literal["nobody", "order", "all"] = "nobody"
    previous_until: str | None = None
    calls: tuple[str, ...] = ("supports", "build")
    group: str = _named("dba.{}s")
    hook: str = _named("dba_{}")
    template: str = _named("{}.py.in")

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
        contract=1,
        request=SummarizerRequest,
        typical=lambda device, _: SummarizerRequest(shape=_SHAPE, mem_block=64, device=device),
        suite="dba_core.testing.layer_parts:SUMMARIZER",
        per_layer=True,
        auto="order",
    ),
    PluginKind(
        name="gate",
        title="Gate",
        contract=1,
        request=GateRequest,
        typical=lambda device, _: GateRequest(shape=_SHAPE, device=device),
        suite="dba_core.testing.layer_parts:GATE",
        per_layer=True,
        auto="order",
    ),
    PluginKind(
        name="null_token",
        title="Null token",
        contract=1,
        request=NullTokenRequest,
        typical=lambda device, _: NullTokenRequest(shape=_SHAPE, device=device),
        suite="dba_core.testing.layer_parts:NULL_TOKEN",
        per_layer=True,
        auto="order",
    ),
    PluginKind(
        name="decode_backend",
        title="Decode backend",
        contract=1,
        request=DecodeRequest,
        typical=_typical_decode,
        suite="dba_core.testing.decode:DECODE",
        per_layer=True,
        auto="order",
    ),
    PluginKind(
        name="kv_format",
        title="Cache format",
        contract=1,
        request=KVFormatRequest,
        suite="dba_core.testing.kv_format:KV_FORMAT",
        usage="dba run --kv-policy ksem={name},kgeo={name},v={name}",
    ),
    PluginKind(
        name="weight_format",
        title="Weight format",
        group="dba.weight_formats",
        hook="dba_weight_format",
        contract=1,
        request=WeightRequest,
        typical=lambda device, _: WeightRequest(rows=512, columns=128, device=device),
        suite="dba_core.testing.weight_format:WEIGHT_FORMAT",
        template="weight_format.py.in",
        per_layer=False,
        auto="order",
        usage="dba sample RUN --weights {name}",
    ),
    PluginKind(
        name="checkpoint_source",
        title="Checkpoint source",
        contract=1,
        request=SourceRequest,
        suite="dba_core.testing.checkpoint_source:CHECKPOINT_SOURCE",
        auto="all",
        usage="dba convert MODEL --out DIR",
        calls=("supports", "build", "example"),
    ),
    PluginKind(
        name="command",
        title="Command",
        contract=1,
        request=object,
        suite="dba_core.testing.command:COMMAND",
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
    return tuple(name for name, kind in KINDS.items() if kind.auto != "nobody")
