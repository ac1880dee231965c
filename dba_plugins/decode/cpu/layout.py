"""How one head's values lie in memory, cut into pieces of at most eight that one vector takes.

A segment is a stretch of a head that has one scale. Where the blocks of the flattened [heads * width] row do
not line up with the heads in stretches of whole vectors, every value looks up its own scale instead
(`by_lane`): right for every layout, and slower.
"""

from __future__ import annotations

import math

import attrs

from dba_plugins.decode.cpu.spec import TensorSpec

LANES = 8


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
