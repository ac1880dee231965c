"""One tile: at most TILE tokens of one unit in a row, absorbed into the running softmax of its query heads.

    s[r,t]  = q_sem[r] . k_sem[t] + q_geo[r] . k_geo[t]
    m'      = max(m, max_t s[r,t])                p[t] = e^(s[r,t] - m')
    l, acc  = l e^(m - m') + sum_t p[t],  acc e^(m - m') + sum_t p[t] v[t]

A tensor with scale blocks is summed up block by block: the scale multiplies the score of a whole block (keys)
or the probability (values), and the 8 of q4_0 becomes one constant per block. The function is emitted twice,
for tokens as stored and for tokens of the residual window.
"""

from __future__ import annotations

import attrs
from llvmlite import ir

from dba_plugins.decode.cpu.convert import Converter
from dba_plugins.decode.cpu.emit import F32, I8, I16, I64, VF, VI, Emitter
from dba_plugins.decode.cpu.layout import LANES, HeadLayout, Segment, head_layout
from dba_plugins.decode.cpu.spec import GROUP, KernelSpec, TensorSpec

TILE = 64
#: One head's state in memory: m, l, then acc.
STATE = 2

_P8, _P16, _PF = I8.as_pointer(), I16.as_pointer(), F32.as_pointer()
#: For each tensor: its row of the tile's first token, its scales there, its head.
_TENSOR_ARGS = [_P8, _P16, I64]
ARGS = [*_TENSOR_ARGS * 3, I64, I64, _PF, _PF, _PF]


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
    from dba_plugins.decode.cpu.scores import emit_scores
    from dba_plugins.decode.cpu.softmax import emit_softmax
    from dba_plugins.decode.cpu.values import emit_values

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
