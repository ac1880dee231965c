"""The scores of a tile for up to four query heads: tokens in groups, eight dot products at a time.

    s[r,t] = sum_segments scale[t] (q[r] . codes[t] - offset sum q[r])

A group is eight (token, head) pairs, each with a vector of partial sums; a tree of pairwise additions turns
the eight vectors into one vector of eight dot products. So the values of a token are converted once for all
heads, and nothing is added up across lanes one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from llvmlite import ir

from dba_plugins.decode.cpu.emit import LOWEST
from dba_plugins.decode.cpu.layout import LANES, Segment
from dba_plugins.decode.cpu.tile import TILE, Source, Tile, lane_scales


@attrs.frozen(eq=False)
class _Part:
    """One segment of k_sem or k_geo. number: of its scales, None without; constant: offset * sum of q, by
    lane.
    """

    source: Source
    query: ir.Value
    segment: Segment
    number: int | None
    constant: ir.Value | None


def emit_scores(tile: Tile, heads: range) -> None:
    """Fill tile.scores for these heads of the unit; the lanes past the tile's tokens hold LOWEST."""
    e, b = tile.e, tile.e.b
    per_group = LANES // len(heads)
    parts = list(_parts(tile, heads, per_group))
    last = b.sub(tile.count, e.i64(1))
    whole = b.mul(b.sdiv(tile.count, e.i64(per_group)), e.i64(per_group))
    with e.loop(e.i64(0), whole, per_group) as first:
        tokens = [b.add(first, e.i64(i)) for i in range(per_group)]
        _store(tile, heads, first, _group(tile, parts, heads, tokens, first))
    with e.when(b.icmp_signed("<", whole, tile.count)):
        tokens = [e.smaller(b.add(whole, e.i64(i)), last) for i in range(per_group)]
        _store(tile, heads, whole, _group(tile, parts, heads, tokens, whole))
    _mask(tile, heads)


def _parts(tile: Tile, heads: range, per_group: int) -> Iterator[_Part]:
    number = 0
    for source, query in ((tile.k_sem, tile.q_sem), (tile.k_geo, tile.q_geo)):
        for segment in source.layout.segments:
            scaled = source.layout.scaled
            constant = None
            if scaled and source.convert.offset:
                constant = _query_constant(tile, source, query, segment, heads, per_group)
            yield _Part(source, query, segment, number if scaled else None, constant)
            number += scaled


def _query_constant(
    tile: Tile, source: Source, query: ir.Value, segment: Segment, heads: range, per_group: int
) -> ir.Value:
    """offset * sum of the query over the segment, in the lanes of each head."""
    e, b = tile.e, tile.e.b
    vectors = []
    for head in heads:
        total: ir.Value = e.vf(0.0)
        for piece in segment.pieces:
            at = e.at(query, head * source.spec.width + piece.start)
            total = b.fadd(total, e.load_vector(at, piece.count))
        vectors.append(total)
    sums = e.transposed_sums(_padded(e.vf(0.0), vectors * per_group))
    return b.fmul(sums, e.vf(source.convert.offset))


def _group(
    tile: Tile, parts: Sequence[_Part], heads: range, tokens: Sequence[ir.Value], first: ir.Value
) -> ir.Value:
    """Scores of (token, head), heads fastest, in one vector."""
    e, b = tile.e, tile.e.b
    total: ir.Value = e.vf(0.0)
    for part in parts:
        sums = [e.vf(0.0) for _ in range(len(tokens) * len(heads))]
        rows = [part.source.convert.row(part.source.row(e, token)) for token in tokens]
        for piece in part.segment.pieces:
            queries = [
                e.load_vector(e.at(part.query, head * part.source.spec.width + piece.start), piece.count)
                for head in heads
            ]
            for t, row in enumerate(rows):
                values = row.piece(piece)
                if part.source.layout.by_lane:
                    scales = lane_scales(tile, part.source, tokens[t], piece.start, piece.count)
                    values = b.fmul(b.fsub(values, e.vf(part.source.convert.offset)), scales)
                for h, query in enumerate(queries):
                    at = t * len(heads) + h
                    sums[at] = e.fma(values, query, sums[at])
        dots = e.transposed_sums(_padded(e.vf(0.0), sums))
        if part.constant is not None:
            dots = b.fsub(dots, part.constant)
        if part.number is None:
            total = b.fadd(total, dots)
        else:
            total = e.fma(dots, _token_scales(tile, part.number, first, len(tokens), len(heads)), total)
    return total


def _token_scales(tile: Tile, number: int, first: ir.Value, n_tokens: int, n_heads: int) -> ir.Value:
    """The scale of each lane's token; a group may reach past the tile's end, where scales are zero."""
    e = tile.e
    loaded = e.load_vector(e.at(tile.k_scales, first, number * TILE))
    lanes = [min(lane // n_heads, n_tokens - 1) for lane in range(LANES)]
    return loaded if n_heads == 1 else e.shuffle(loaded, lanes)


def _store(tile: Tile, heads: range, first: ir.Value, scores: ir.Value) -> None:
    e, n_heads = tile.e, len(heads)
    per_group = LANES // n_heads
    for h in range(n_heads):
        lanes = [token * n_heads + h for token in range(per_group)]
        picked = scores if n_heads == 1 else e.shuffle(scores, lanes + [0] * (LANES - per_group))
        e.store_vector(picked, e.at(tile.scores, first, h * TILE), per_group)


def _mask(tile: Tile, heads: range) -> None:
    """LOWEST from the tile's last token to the end of its last vector."""
    e = tile.e
    end = e.b.and_(e.b.add(tile.count, e.i64(LANES - 1)), e.i64(-LANES))
    with e.loop(tile.count, end) as token:
        for h in range(len(heads)):
            e.b.store(e.f32(LOWEST), e.at(tile.scores, token, h * TILE))


def _padded(zero: ir.Value, vectors: list[ir.Value]) -> list[ir.Value]:
    return vectors + [zero] * (LANES - len(vectors))
