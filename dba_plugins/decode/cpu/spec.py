"""What one kernel is compiled for, and how one head's values lie in memory.

Lengths, capacity, batch and partitions are arguments of the kernel. A head is cut into pieces of at most
eight values that one vector takes. A segment is a stretch of a head that has one scale. Where the blocks of
the flattened [heads * width] row do not line up with the heads in stretches of whole vectors, every value
looks up its own scale instead (`by_lane`): right for every layout, and slower.
"""

from __future__ import annotations

import math

import attrs

from dba_core.contracts import CachedTensor, DecodeRequest
from dba_plugins.native import LANES

#: The formats whose codes and scales the kernels read and write themselves.
NATIVE = ("fp32", "fp16", "bf16", "q8_0", "q4_0", "nf4")
MAX_WIDTH = 256
MAX_SHARE = 64
#: Query heads whose scores are computed together: the converted values serve all of them.
GROUP = 4


@attrs.frozen(kw_only=True)
class TensorSpec:
    """One cached tensor: `heads` of `width` values each (0: an absent path)."""

    heads: int
    width: int
    format: str
    qblock: int

    @classmethod
    def of(cls, tensor: CachedTensor) -> TensorSpec:
        return cls(heads=tensor.n_heads, width=tensor.head_dim, format=tensor.format, qblock=tensor.qblock)

    @property
    def quantized(self) -> bool:
        return self.qblock > 0

    @property
    def nibbles(self) -> bool:
        return self.format in ("q4_0", "nf4")

    @property
    def row_bytes(self) -> int:
        """Bytes of one head of one token."""
        if self.nibbles:
            return (self.width + 1) // 2
        return self.width * {"fp32": 4, "fp16": 2, "bf16": 2, "q8_0": 1}[self.format]

    @property
    def n_blocks(self) -> int:
        """Scale planes of the tensor."""
        return -(-self.heads * self.width // self.qblock) if self.quantized and self.width else 0

    @property
    def as_recent(self) -> TensorSpec:
        """The same as the residual window holds it."""
        return attrs.evolve(self, format="fp16", qblock=0) if self.quantized else self


@attrs.frozen(kw_only=True)
class KernelSpec:
    """heads: query heads H. window: whether block formats have a residual window."""

    heads: int
    k_sem: TensorSpec
    k_geo: TensorSpec
    v: TensorSpec
    window: bool

    @classmethod
    def of(cls, request: DecodeRequest) -> KernelSpec:
        """Absent paths count as fp32, so that no variant differs by the format of nothing."""
        tensors = [
            spec if spec.width else attrs.evolve(spec, format="fp32", qblock=0)
            for spec in map(TensorSpec.of, (request.k_sem, request.k_geo, request.v))
        ]
        quantized = any(tensor.quantized for tensor in tensors)
        return cls(
            heads=request.shape.n_heads,
            k_sem=tensors[0],
            k_geo=tensors[1],
            v=tensors[2],
            window=quantized and request.residual_len > 0,
        )

    @property
    def tensors(self) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        return self.k_sem, self.k_geo, self.v

    @property
    def units(self) -> int:
        """Units of work per row: as many as keep one head of each tensor per unit."""
        counts = [tensor.heads for tensor in self.tensors if tensor.width]
        most = math.lcm(*counts)
        return most if self.heads % most == 0 else self.heads

    @property
    def share(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units


@attrs.frozen
class Piece:
    """Values start .. start+count-1 of a head; `offset`: the byte (nibbles) or value of the row where they
    begin; `high`: they are the high nibbles.
    """

    start: int
    count: int
    offset: int
    high: bool = False


@attrs.frozen
class Segment:
    """Pieces that share a scale: block `(head * width + start) // qblock`."""

    start: int
    pieces: tuple[Piece, ...]


@attrs.frozen(kw_only=True)
class HeadLayout:
    """scaled: every segment has a scale. Float formats and `by_lane` have one segment, without."""

    segments: tuple[Segment, ...]
    by_lane: bool
    scaled: bool

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(piece for segment in self.segments for piece in segment.pieces)


def head_layout(tensor: TensorSpec) -> HeadLayout:
    """The layout of one head of this tensor."""
    width, qblock = tensor.width, tensor.qblock
    if not width:
        return HeadLayout(segments=(), by_lane=False, scaled=False)
    if not tensor.quantized:
        return HeadLayout(segments=(_segment(tensor, 0, width),), by_lane=False, scaled=False)
    unit = width if qblock % width == 0 else math.gcd(width, qblock)
    if unit != width and unit % LANES:
        return HeadLayout(segments=(_segment(tensor, 0, width),), by_lane=True, scaled=False)
    segments = tuple(_segment(tensor, start, unit) for start in range(0, width, unit))
    return HeadLayout(segments=segments, by_lane=False, scaled=True)


def _segment(tensor: TensorSpec, start: int, length: int) -> Segment:
    """Values start .. start+length-1; where they are both nibbles of some bytes, those stand side by side."""
    stop = start + length
    if not tensor.nibbles:
        return Segment(start, tuple(_pieces(start, stop, shift=0, high=False)))
    half = tensor.row_bytes
    low = _pieces(start, min(stop, half), shift=0, high=False)
    high = _pieces(max(start, half), stop, shift=half, high=True)
    return Segment(start, tuple(sorted([*low, *high], key=lambda piece: (piece.offset, piece.high))))


def _pieces(start: int, stop: int, *, shift: int, high: bool) -> list[Piece]:
    return [
        Piece(first, min(LANES, stop - first), first - shift, high) for first in range(start, stop, LANES)
    ]
