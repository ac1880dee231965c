"""The contracts between the core and its plugins: their requests, answers and protocols.

No torch is imported here: a plugin's metadata and `supports()` must be readable without it.
Letters: B batch, T query tokens, H query heads, G key/value heads, Ds / Dg / Dv widths of one head,
N memory blocks of L tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import attrs

from dba_core.checkpoint_source import EXAMPLE as EXAMPLE
from dba_core.checkpoint_source import ModelDescription as ModelDescription
from dba_core.checkpoint_source import OpenedSource as OpenedSource
from dba_core.checkpoint_source import SourceRequest as SourceRequest
from dba_core.checkpoint_source import StoredWeight as StoredWeight
from dba_core.checkpoint_source import example_weights as example_weights
from dba_core.kv_contracts import FP16_MAX as FP16_MAX
from dba_core.kv_contracts import Encoded as Encoded
from dba_core.kv_contracts import FormatFacts as FormatFacts
from dba_core.kv_contracts import KVCodec as KVCodec
from dba_core.kv_contracts import KVFormatRequest as KVFormatRequest
from dba_core.kv_contracts import KVLayer as KVLayer
from dba_core.kv_contracts import KVTensor as KVTensor
from dba_core.support import Reason as Reason  # a plugin finds all that it needs here
from dba_core.support import Support as Support
from dba_core.weight_contracts import PackedWeight as PackedWeight
from dba_core.weight_contracts import WeightFacts as WeightFacts
from dba_core.weight_contracts import WeightRequest as WeightRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

#: The name of a kind of plugin; `dba_core.kinds` says what there is to say about each.
Kind: TypeAlias = str

#: What plugins state that were written when this was the way to say "the contract of today", which was 1. A
#: plugin writes the number itself (`contract = 1`): only then can it be compared with another.
CONTRACT_VERSIONS: dict[Kind, int] = dict.fromkeys(("summarizer", "gate", "null_token", "decode_backend"), 1)


@attrs.frozen(kw_only=True)
class AttentionShape:
    """The sizes of one attention layer, as plugins see them. A width of 0 means that path is absent.

    n_kv_heads: G, of geometric keys and of the null token. sem_kv_heads, v_kv_heads: of semantic keys and
    values where they are fewer, each shared by equally many neighbouring KV heads; None is G.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    sem_head_dim: int
    geo_head_dim: int
    v_head_dim: int
    sem_kv_heads: int | None = None
    v_kv_heads: int | None = None

    @property
    def cached_heads(self) -> tuple[int, int, int]:
        """Heads of k_sem, k_geo and v in the cache."""
        return self.sem_kv_heads or self.n_kv_heads, self.n_kv_heads, self.v_kv_heads or self.n_kv_heads


@attrs.frozen(kw_only=True)
class Request:
    """What a plugin of a layer will be asked to do. `auto` chooses for the device."""

    shape: AttentionShape
    device: str = "cpu"
    dtype: str = "float32"


@attrs.frozen(kw_only=True)
class SummarizerRequest(Request):
    """What a memory summarizer will be asked to do."""

    mem_block: int


@attrs.frozen(kw_only=True)
class GateRequest(Request):
    """What a gate will be asked to do."""


@attrs.frozen(kw_only=True)
class NullTokenRequest(Request):
    """What a null-token provider will be asked for."""


@attrs.frozen(kw_only=True)
class CachedTensor:
    """How one of the three cached tensors is stored. `qblock` is 0 for float formats."""

    n_heads: int
    head_dim: int
    format: str
    qblock: int = 0


@attrs.frozen(kw_only=True)
class DecodeRequest(Request):
    """What a decode backend will be asked to do: one query token per sequence over one layer's cache.

    device_capability, multiprocessors: of a CUDA device; None elsewhere.
    """

    k_sem: CachedTensor
    k_geo: CachedTensor
    v: CachedTensor
    residual_len: int
    batch: int
    capacity: int
    has_null: bool
    needs_lse: bool = False
    device_capability: tuple[int, int] | None = None
    multiprocessors: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NullKV:
    """One extra key/value per KV head that every query sees exactly once. k_geo is not rotated.

    k_sem [G,Ds], k_geo [G,Dg], v [G,Dv]. A dataclass, because torch.compile cannot trace the __init__ of a
    frozen attrs class.
    """

    k_sem: Tensor
    k_geo: Tensor
    v: Tensor


@attrs.frozen(kw_only=True, eq=False)
class DecodeOutput:
    """out [B,H,Dv] in the query's dtype; lse [B,H] float32, natural log-sum-exp of the scores, on demand."""

    out: Tensor
    lse: Tensor | None = None


@runtime_checkable
class Summarizer(Protocol):
    """An nn.Module that turns full memory blocks into memory tokens, each block on its own."""

    def __call__(self, k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k_sem [B,G,N,L,Ds], v [B,G,N,L,Dv] -> [B,G,N,Ds], [B,G,N,Dv], same dtype and device."""
        ...


@runtime_checkable
class Gate(Protocol):
    """An nn.Module: hidden states [B,T,d_model] -> [B,H,T,1] in [0,1]; row t depends on row t alone."""

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class NullToken(Protocol):
    """An nn.Module without inputs that returns the null key/value."""

    def __call__(self) -> NullKV: ...


@runtime_checkable
class TokenWriter(Protocol):
    """Quantizes and stores tokens in one pass; what `LayerCache.append` does with torch, bit for bit."""

    def write(self, cache: KVLayer, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> bool:
        """k_sem [B,G,T,Ds], k_geo [B,G,T,Dg], v [B,G,T,Dv], checked but for their values.

        Token t of row b goes to position lengths[b] + t: codes, scales, and the ring where there is one. The
        lengths stay; the cache advances them. False: a value is not finite or exceeds the store's
        `max_input`, and nothing was written. A writer that cannot know without waiting for its device
        returns True and sets `cache.bad_values`.
        """
        ...


@runtime_checkable
class DecodeBackend(Protocol):
    """Attention of one query token per sequence over one layer's cache.

    `fused_null` says whether the null token is part of the same kernel (the summary reports it). `writer`
    stores the tokens that come to a cache which this backend serves; None leaves it to the cache.
    """

    name: str
    fused_null: bool
    writer: TokenWriter | None

    def decode(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: KVLayer,
        *,
        null: NullKV | None = None,
        needs_lse: bool = False,
    ) -> DecodeOutput:
        """q_sem [B,H,Ds], q_geo [B,H,Dg], both already scaled: score = q_sem.k_sem + q_geo.k_geo.

        Row b attends to its first `cache.lengths[b]` tokens: the newest `cache.residual_len` of them as the
        residual window holds them, older ones as stored. A row of length 0 without a null token gives zeros
        and an lse of -inf. Reads nothing past a length, changes nothing that it was given.
        """
        ...


RequestT = TypeVar("RequestT", contravariant=True)
BuiltT = TypeVar("BuiltT", covariant=True)


class Plugin(Protocol[RequestT, BuiltT]):
    """What every plugin's hook returns. `options_class` is an attrs class whose defaults are the plugin's."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> int: ...

    @property
    def summary(self) -> str:
        """One line for `dba plugins list` and `info`."""
        ...

    @property
    def options_class(self) -> type[Any]: ...

    def supports(self, request: RequestT, options: Any) -> Support: ...

    def build(self, request: RequestT, options: Any) -> BuiltT: ...


@runtime_checkable
class CheckpointSourcePlugin(Plugin[SourceRequest, OpenedSource], Protocol):
    """A plugin with an example of its own."""

    def example(self, folder: Path) -> Path:
        """Write a tiny checkpoint of this kind into the empty folder, and return the path that a user would
        give. The contract suite reads it.
        """
        ...


@attrs.frozen
class NoOptions:
    """The options class of a plugin that takes none."""


SummarizerPlugin: TypeAlias = Plugin[SummarizerRequest, "nn.Module"]
GatePlugin: TypeAlias = Plugin[GateRequest, "nn.Module | None"]
NullTokenPlugin: TypeAlias = Plugin[NullTokenRequest, "nn.Module | None"]
DecodeBackendPlugin: TypeAlias = Plugin[DecodeRequest, DecodeBackend]


class KVFormatPlugin(Plugin[KVFormatRequest, KVCodec], Protocol):
    """A cache format. Its module, and `facts`, can be read without torch: policies and sizes need no more."""

    @property
    def facts(self) -> FormatFacts: ...


#: Packs a weight [N,K] of floats.
Pack: TypeAlias = "Callable[[Tensor], PackedWeight]"


class WeightFormatPlugin(Plugin[WeightRequest, Pack], Protocol):
    """A weight format: builds a `Pack`. Its module, and `facts`, can be read without torch."""

    @property
    def facts(self) -> WeightFacts: ...


AnyPlugin: TypeAlias = Plugin[Any, Any]
