"""What cache formats and decode backends agree on with the cache: `contracts` has all of it too.

A format states its facts and makes a codec; the cache keeps the codec's planes; a backend reads these planes.
No torch is imported here. Letters: B batch, T tokens, G key/value heads, D width of one head, C elements that
hold the codes of one head, R slots of the residual ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

from dba_core.support import Reason, Support

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@attrs.frozen(kw_only=True)
class KVFormatRequest:
    """What a cache format will be asked to store: `n_heads` heads of `head_dim` values for each token, which
    is at least 1, in blocks of `qblock` values of the flattened row (0: a format without blocks).
    """

    n_heads: int
    head_dim: int
    qblock: int = 0
    device: str = "cpu"

    def __str__(self) -> str:
        blocks = f"blocks of {self.qblock}" if self.qblock else "no blocks"
        return f"{self.n_heads} heads of {self.head_dim}, {blocks}, {self.device}"


#: The largest finite fp16 number, which is also the limit of the residual window.
FP16_MAX = 65504.0
_BYTES_OF = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1}


@attrs.frozen(kw_only=True)
class FormatFacts:
    """What a cache format costs and keeps, as plain numbers.

    bits: of one value's code, scales not counted. packed: values of a head that share whole bytes (2 for
    codes of 4 bits); a head's last group is stored whole. code_dtype: of the plane of codes. qblocks: values
    per scale that may be chosen, none for a format without scales; default_qblock: what a policy means that
    names none. scale_dtype: of the plane of scales, one per block. max_input: the largest |x| that is taken.
    round_trip_error: relative L2 error on float32 values of N(0,1), in blocks of `default_qblock`.
    tried: the block lengths that a search for a policy tries (0: of a format without blocks). other_names: by
    which people ask for it. Raises ValueError for what cannot be.
    """

    bits: int
    code_dtype: str
    max_input: float
    round_trip_error: float
    packed: int = 1
    qblocks: tuple[int, ...] = ()
    default_qblock: int = 0
    scale_dtype: str = "bfloat16"
    tried: tuple[int, ...] = ()
    other_names: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for name, dtype in (("code_dtype", self.code_dtype), ("scale_dtype", self.scale_dtype)):
            if dtype not in _BYTES_OF:
                raise ValueError(f"{name}={dtype!r}; allowed: {', '.join(_BYTES_OF)}")
        group = self.bits * self.packed
        if self.bits < 1 or self.packed < 1 or group % (8 * _BYTES_OF[self.code_dtype]):
            raise ValueError(
                f"packed={self.packed} codes of bits={self.bits} fill no whole number of {self.code_dtype}"
            )
        if min(self.qblocks, default=1) < 1 or self.default_qblock not in (self.qblocks or (0,)):
            raise ValueError(f"default_qblock={self.default_qblock} is not one of qblocks={self.qblocks}")
        if not (self.max_input > 0 and self.round_trip_error >= 0):
            limits = f"max_input={self.max_input} and round_trip_error={self.round_trip_error}"
            raise ValueError(f"{limits}; allowed: more than 0, and 0 or more")
        if not set(self.tried) <= set(self.qblocks or (0,)):
            raise ValueError(f"tried={self.tried} are not all among qblocks={self.qblocks}")

    @property
    def quantized(self) -> bool:
        """Codes with a scale per block, not floating-point numbers."""
        return bool(self.qblocks)

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of the codes of one head of one token."""
        return -(-head_dim // self.packed) * self.packed * self.bits // 8

    def code_width(self, head_dim: int) -> int:
        """C: elements of `code_dtype` that hold one head of one token."""
        return self.code_bytes(head_dim) // _BYTES_OF[self.code_dtype]

    def n_blocks(self, row: int, qblock: int) -> int:
        """Scales of one token whose flattened row has `row` values; the last block may be short."""
        return -(-row // qblock) if qblock else 0

    def scale_bytes(self, row: int, qblock: int) -> int:
        """Bytes of the scales of such a token."""
        return _BYTES_OF[self.scale_dtype] * self.n_blocks(row, qblock)

    def supports(self, request: KVFormatRequest) -> Support:
        """Against blocks that are not among `qblocks`; a plugin's `supports` may add reasons of its own."""
        if request.qblock in (self.qblocks or (0,)):
            return Support.yes()
        return Support.no(
            Reason(
                subject="block length",
                got=str(request.qblock),
                supported=", ".join(map(str, self.qblocks)) or "none: the format has no blocks",
                action="Choose one of these in the KV policy.",
            )
        )


@attrs.frozen(eq=False)
class Encoded:
    """Codes [B,G,T,C] and, for formats with blocks, scales [B,n_blocks,T], else None."""

    codes: Tensor
    scales: Tensor | None


class KVCodec(Protocol):
    """Values of one or more tokens <-> codes and scales, in one cached tensor; it can be copied and pickled.

    Every token's codes come from that token alone, so they do not depend on how tokens are batched. Neither
    method changes what it was given, or keeps anything: one codec serves all tensors of one size.
    """

    def encode(self, x: Tensor) -> Encoded:
        """x [B,G,T,D], any floating dtype and strides, finite and at most the format's max_input in size."""
        ...

    def decode(self, codes: Tensor, scales: Any) -> Tensor:
        """codes [B,G,T,C], scales [B,n_blocks,T] (None for formats without blocks), of any strides -> values
        [B,G,T,D], float32 or, without blocks, the dtype of the codes; may be a view of the codes.
        """
        ...


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
