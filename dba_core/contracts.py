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
from dba_core.support import Reason as Reason  # a plugin finds all that it needs here
from dba_core.support import Support as Support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
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


@attrs.frozen(kw_only=True)
class CompiledKernel:
    """A GPU kernel compiled for a device that need not be there, for `dba bench kernels`.

    See `CompilesOffline`. sass, usage: what `cuobjdump
    -sass` and `-res-usage` print. tokens: cached tokens that one round of the main loop takes, warps: of the
    program that does. tensor_core: how many tensor-core instructions a round needs; scale_loads: how many
    loads of scales. most_registers, most_per_token: what must not be exceeded (None: no limit), the latter in
    warp instructions.
    """

    kernel: str
    case: str
    target: str
    sass: str
    usage: str
    shared_bytes: int
    tokens: int
    warps: int
    tensor_core: int
    scale_loads: int
    most_registers: int | None = None
    most_per_token: float | None = None


@runtime_checkable
class CompilesOffline(Protocol):
    """What a decode backend's plugin has beside its contract, where its kernels can be read without a GPU."""

    def compiled_kernels(self) -> Iterator[CompiledKernel]:
        """Compiles as it goes."""
        ...


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


class KVTensor(Protocol):
    """One cached tensor (k_sem, k_geo or v) of one layer, as a decode backend reads it.

    codes [B,G,capacity,C]: dtype and C are the format's. scales [B,n_blocks,capacity]: None for float
    formats. recent_ring [B,G,R,D] fp16: position p is in slot p % R; None without a residual window. qblock:
    values per scale, 0 for float formats. max_input: the largest |x| that is stored.
    The planes are made once: a kernel may keep their addresses for as long as the cache lives.
    """

    @property
    def n_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def qblock(self) -> int: ...
    @property
    def quantized(self) -> bool: ...
    @property
    def max_input(self) -> float: ...
    @property
    def capacity(self) -> int: ...
    @property
    def codes(self) -> Tensor: ...
    @property
    def scales(self) -> Tensor | None: ...
    @property
    def recent_ring(self) -> Tensor | None: ...

    def read(self, start: int, stop: int, *, row: int | None = None, dtype: torch.dtype = ...) -> Tensor:
        """Positions start..stop-1 as the newest query of each row reads them: [B,G,stop-start,D], of one row
        [1,G,stop-start,D]; float32 where no dtype is named. The newest `residual_len` tokens as the residual
        window holds them, older ones as stored; zeros past a row's length.
        """
        ...

    def stored(self, start: int, stop: int, *, row: int | None = None, dtype: torch.dtype = ...) -> Tensor:
        """The same, all of them dequantized from codes and scales."""
        ...

    def recent(self, start: int, stop: int, dtype: torch.dtype = ..., *, row: int | None = None) -> Tensor:
        """The same, all of them from the ring: of rows of equal lengths, or of one row. Raises CacheError
        where the ring no longer holds a position.
        """
        ...


class KVLayer(Protocol):
    """The cache of one layer, as a decode backend reads it: row b holds lengths[b] tokens.

    length: of the longest row. lengths_device: int32 [B] on the cache's device, always the same tensor.
    residual_len: newest tokens of a row that are read from the ring where there is one. ring_size: R.
    layer: the number that errors name. capturing: whether a CUDA graph records what is done now.
    bad_values: int32 [1] on the device, which a writer that does not wait for it makes and sets.
    """

    bad_values: Tensor | None

    @property
    def k_sem(self) -> KVTensor: ...
    @property
    def k_geo(self) -> KVTensor: ...
    @property
    def v(self) -> KVTensor: ...
    @property
    def layer(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def length(self) -> int: ...
    @property
    def lengths_device(self) -> Tensor: ...
    @property
    def residual_len(self) -> int: ...
    @property
    def ring_size(self) -> int: ...
    @property
    def capturing(self) -> bool: ...


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
AnyPlugin: TypeAlias = Plugin[Any, Any]
