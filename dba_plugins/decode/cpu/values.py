"""The weighted sum of a tile's values for up to four query heads.

    acc[r] = keep acc[r] + sum_t w[block,t] codes[t]  -  offset sum_t w[block,t]

The accumulators of a few pieces of all heads stay in registers over the tile's tokens; the values of a token
are converted once for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dba_plugins.decode.cpu.layout import LANES, Piece
from dba_plugins.decode.cpu.tile import STATE, TILE, Tile, lane_scales

#: Accumulators that fit in registers beside what is converted.
_ACCUMULATORS = 8


def emit_values(tile: Tile, heads: range) -> None:
    """Add the tile's values into the acc of each head's state."""
    layout = tile.v.layout
    numbered = [
        (piece, number if layout.scaled else 0)
        for number, segment in enumerate(layout.segments)
        for piece in segment.pieces
    ]
    numbered.sort(key=lambda item: (item[0].offset, item[0].high))
    at_once = max(1, _ACCUMULATORS // len(heads))
    for first in range(0, len(numbered), at_once):
        _pass(tile, heads, numbered[first : first + at_once])


def _pass(tile: Tile, heads: range, pieces: Sequence[tuple[Piece, int]]) -> None:
    e, b = tile.e, tile.e.b
    n_segments = len(tile.v.layout.segments) if tile.v.layout.scaled else 1
    slots = [[e.local(e.vf(0.0)) for _ in pieces] for _ in heads]
    with e.loop(e.i64(0), tile.count) as token:
        row = tile.v.convert.row(tile.v.row(e, token))
        weights = {
            (h, number): e.splat(b.load(e.at(tile.weights, token, (h * n_segments + number) * TILE)))
            for h in range(len(heads))
            for number in sorted({number for _, number in pieces})
        }
        for p, (piece, number) in enumerate(pieces):
            values = row.piece(piece)
            if tile.v.layout.by_lane:
                scales = lane_scales(tile, tile.v, token, piece.start, piece.count)
                values = b.fmul(b.fsub(values, e.vf(tile.v.convert.offset)), scales)
            for h in range(len(heads)):
                slot = slots[h][p]
                b.store(e.fma(values, weights[h, number], b.load(slot)), slot)
    for h, head in enumerate(heads):
        keep = e.splat(b.load(e.at(tile.keep, h)))
        for p, (piece, number) in enumerate(pieces):
            added = b.load(slots[h][p])
            if tile.v.layout.scaled and tile.v.convert.offset:
                added = b.fsub(added, _offset(tile, h * n_segments + number))
            acc = e.at(tile.state, head * tile.state_width + STATE + piece.start)
            kept = b.fmul(e.load_vector(acc, piece.count), keep)
            e.store_vector(b.fadd(kept, added), acc, piece.count)


def _offset(tile: Tile, row: int) -> ir.Value:
    """offset * sum_t w[block,t], in every lane. Weights past the tile's tokens are zero."""
    e, b = tile.e, tile.e.b
    total = e.local(e.vf(0.0))
    with e.loop(e.i64(0), tile.count, LANES) as token:
        b.store(b.fadd(b.load(total), e.load_vector(e.at(tile.weights, token, row * TILE))), total)
    return e.splat(b.fmul(e.lanes_sum(b.load(total)), e.f32(tile.v.convert.offset)))
