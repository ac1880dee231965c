"""One tile: at most TILE tokens of one unit in a row, absorbed into the running softmax of its query heads.

    s[r,t]  = sum_segments scale[t] (q[r] . codes[t] - offset sum q[r])           over k_sem and k_geo
    m'      = max(m, max_t s[r,t])                p[t] = e^(s[r,t] - m')          w[block,t] = p[t] scale
    l, acc  = l e^(m - m') + sum_t p[t],  acc e^(m - m') + sum_t w[block,t] codes[t] - offset sum_t w[block,t]

A tensor with scale blocks is summed up block by block: the scale multiplies the score of a whole block (keys)
or the probability (values), and the 8 of q4_0 becomes one constant per block. The function is emitted twice,
for tokens as stored and for tokens of the residual window.

Scores come eight at a time. A group is eight (token, head) pairs, each with a vector of partial sums; a tree
of pairwise additions turns the eight vectors into one vector of eight dot products. So the values of a token
are converted once for all heads, and nothing is added up across lanes one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from llvmlite import ir

from dba_plugins.decode.cpu.codes import Converter
from dba_plugins.decode.cpu.spec import (
    GROUP,
    HeadLayout,
    KernelSpec,
    Piece,
    Segment,
    TensorSpec,
    head_layout,
)
from dba_plugins.native import LANES
from dba_plugins.native.emit import F32, I8, I16, I64, LOWEST, VF, VI, Emitter

TILE = 64
#: One head's state in memory: m, l, then acc.
STATE = 2

_P8, _P16, _PF = I8.as_pointer(), I16.as_pointer(), F32.as_pointer()
#: For each tensor: its row of the tile's first token, its scales there, its head.
_TENSOR_ARGS = [_P8, _P16, I64]
ARGS = [*_TENSOR_ARGS * 3, I64, I64, _PF, _PF, _PF]
#: Accumulators that fit in registers beside what is converted.
_ACCUMULATORS = 8


@attrs.define(eq=False)
class Source:
    """One tensor in the tile. scales: of blocks at the first token, `capacity` apart."""

    spec: TensorSpec
    layout: HeadLayout
    convert: Converter
    codes: ir.Value
    scales: ir.Value
    head: ir.Value

    def row(self, e: Emitter, token: ir.Value) -> ir.Value:
        return e.at(self.codes, e.b.mul(token, e.i64(self.spec.row_bytes)))

    def block(self, e: Emitter, start: int) -> ir.Value:
        """The block of the head's value `start`."""
        first = e.b.add(e.b.mul(self.head, e.i64(self.spec.width)), e.i64(start))
        return e.b.udiv(first, e.i64(self.spec.qblock))


@attrs.define(eq=False)
class Tile:
    """What the parts of the function share."""

    e: Emitter
    spec: KernelSpec
    k_sem: Source
    k_geo: Source
    v: Source
    capacity: ir.Value
    count: ir.Value
    q_sem: ir.Value
    q_geo: ir.Value
    state: ir.Value
    scores: ir.Value  # [GROUP][TILE]
    k_scales: ir.Value  # [segments][TILE]
    v_scales: ir.Value  # [segments][TILE]
    weights: ir.Value  # [GROUP][segments][TILE]
    keep: ir.Value  # [GROUP]

    @property
    def state_width(self) -> int:
        return STATE + self.spec.v.width


def declare_tile(module: ir.Module, name: str) -> ir.Function:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), ARGS), name=name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function


def emit_tile(
    module: ir.Module, function: ir.Function, spec: KernelSpec, *, recent: bool, has_permute: bool
) -> None:
    """The body of one of the two functions."""
    tile = _tile(Emitter(module, function), spec, recent=recent, has_permute=has_permute)
    segments = [(source, segment) for source in (tile.k_sem, tile.k_geo) for segment in _scaled(source)]
    for number, (source, segment) in enumerate(segments):
        _unpack_scales(tile, source, segment.start, tile.k_scales, number)
    for number, segment in enumerate(_scaled(tile.v)):
        _unpack_scales(tile, tile.v, segment.start, tile.v_scales, number)
    for first in range(0, spec.share, GROUP):
        heads = range(first, min(first + GROUP, spec.share))
        emit_scores(tile, heads)
        emit_softmax(tile, heads)
        emit_values(tile, heads)
    tile.e.b.ret_void()


def _scaled(source: Source) -> tuple[Segment, ...]:
    return source.layout.segments if source.layout.scaled else ()


def _tile(e: Emitter, spec: KernelSpec, *, recent: bool, has_permute: bool) -> Tile:
    args = e.function.args
    sources = []
    for number, tensor in enumerate(spec.tensors):
        codes, scales, head = args[3 * number : 3 * number + 3]
        kept = tensor.as_recent if recent else tensor
        converter = Converter(e, kept, has_permute=has_permute)
        sources.append(Source(kept, head_layout(kept), converter, codes, scales, head))
    n_k = sum(len(_scaled(source)) for source in sources[:2])
    n_v = len(_scaled(sources[2]))
    k_sem, k_geo, v = sources
    capacity, count, q_sem, q_geo, state = args[9:]
    return Tile(
        e=e,
        spec=spec,
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        capacity=capacity,
        count=count,
        q_sem=q_sem,
        q_geo=q_geo,
        state=state,
        scores=e.stack(F32, GROUP * TILE),
        k_scales=e.stack(F32, n_k * TILE),
        v_scales=e.stack(F32, n_v * TILE),
        weights=e.stack(F32, GROUP * max(1, n_v) * TILE),
        keep=e.stack(F32, GROUP),
    )


def _unpack_scales(tile: Tile, source: Source, start: int, into: ir.Value, number: int) -> None:
    """The tile's scales of one block as floats, zeros past its tokens."""
    e = tile.e
    plane = e.at(source.scales, e.b.mul(source.block(e, start), tile.capacity))
    whole = e.b.and_(tile.count, e.i64(-LANES))
    with e.loop(e.i64(0), whole, LANES) as token:
        e.store_vector(e.bf16_vector(e.load_vector(e.at(plane, token))), e.at(into, token, number * TILE))
    with e.when(e.b.icmp_signed("<", whole, tile.count)):
        e.store_vector(e.vf(0.0), e.at(into, whole, number * TILE))
        with e.loop(whole, tile.count) as token:
            e.b.store(e.bf16_scalar(e.at(plane, token)), e.at(into, token, number * TILE))


def lane_scales(tile: Tile, source: Source, token: ir.Value, start: int, count: int) -> ir.Value:
    """The scale of each of the head's values start .. start+count-1, for layouts without segments.

    A head that is no wider than a block lies in two blocks at most, and the lane where the second one begins
    is the same for all tokens.
    """
    e, spec = tile.e, source.spec
    if spec.width > spec.qblock:
        return _looked_up(tile, source, token, start, count)
    first, last = (source.block(e, value) for value in (0, spec.width - 1))
    low, high = (e.splat(_scale(tile, source, block, token)) for block in (first, last))
    end = e.b.mul(e.b.add(first, e.i64(1)), e.i64(spec.qblock))
    turn = e.b.sub(end, e.b.mul(source.head, e.i64(spec.width)))
    lanes = ir.Constant(VI, [start + lane for lane in range(LANES)])
    in_first = e.b.icmp_signed("<", lanes, e.splat(e.b.trunc(turn, VI.element)))
    return e.b.select(in_first, low, high)


def _looked_up(tile: Tile, source: Source, token: ir.Value, start: int, count: int) -> ir.Value:
    e = tile.e
    result: ir.Value = ir.Constant(VF, None)
    for lane in range(count):
        scale = _scale(tile, source, source.block(e, start + lane), token)
        result = e.b.insert_element(result, scale, ir.Constant(VI.element, lane))
    return result


def _scale(tile: Tile, source: Source, block: ir.Value, token: ir.Value) -> ir.Value:
    return tile.e.bf16_scalar(tile.e.at(source.scales, tile.e.b.mul(block, tile.capacity), token))


@attrs.frozen(eq=False)
class _Stretch:
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


def _parts(tile: Tile, heads: range, per_group: int) -> Iterator[_Stretch]:
    number = 0
    for source, query in ((tile.k_sem, tile.q_sem), (tile.k_geo, tile.q_geo)):
        for segment in source.layout.segments:
            scaled = source.layout.scaled
            constant = None
            if scaled and source.convert.offset:
                constant = _query_constant(tile, source, query, segment, heads, per_group)
            yield _Stretch(source, query, segment, number if scaled else None, constant)
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
    tile: Tile, parts: Sequence[_Stretch], heads: range, tokens: Sequence[ir.Value], first: ir.Value
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


def emit_softmax(tile: Tile, heads: range) -> None:
    """Turn tile.scores into tile.weights, scaled for the values that they weigh; m and l of the state are
    those after it, `keep` is what acc is yet to be multiplied by.
    """
    e, b = tile.e, tile.e.b
    for h, head in enumerate(heads):
        scores = e.at(tile.scores, h * TILE)
        state = e.at(tile.state, head * tile.state_width)
        best = e.local(e.vf(LOWEST))
        with e.loop(e.i64(0), tile.count, LANES) as token:
            b.store(e.maximum(b.load(best), e.load_vector(e.at(scores, token))), best)
        before = b.load(state)
        m = e.maximum(before, e.lanes_max(b.load(best)))
        keep = e.exp_scalar(b.fsub(before, m))
        spread = e.splat(m)
        total = e.local(e.vf(0.0))
        n_segments = max(1, len(tile.v.layout.segments) if tile.v.layout.scaled else 1)
        weights = e.at(tile.weights, h * n_segments * TILE)
        with e.loop(e.i64(0), tile.count, LANES) as token:
            p = e.exp(b.fsub(e.load_vector(e.at(scores, token)), spread))
            b.store(b.fadd(b.load(total), p), total)
            for number in range(n_segments):
                weight = p
                if tile.v.layout.scaled:
                    weight = b.fmul(p, e.load_vector(e.at(tile.v_scales, token, number * TILE)))
                e.store_vector(weight, e.at(weights, token, number * TILE))
        mass = e.at(state, 1)
        b.store(m, state)
        b.store(b.fadd(b.fmul(b.load(mass), keep), e.lanes_sum(b.load(total))), mass)
        b.store(keep, e.at(tile.keep, h))


def emit_values(tile: Tile, heads: range) -> None:
    """Add the tile's values into the acc of each head's state: the accumulators of a few pieces of all heads
    stay in registers over the tile's tokens.
    """
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
