"""The two functions of a kernel: `decode_work` takes pieces of work until none is left, `decode_merge` ends.

A piece of work is (batch row, unit, partition of the row's tokens); it leaves its state (m, l, acc) of every
query head in the scratch. Several threads run `decode_work` at once on the same arguments and share a
counter. Partitions past a row's length leave the neutral state. All arguments are in one array of int64
(`Arg`).
"""

from __future__ import annotations

import enum

from llvmlite import ir

from dba_plugins.decode.cpu.emit import F32, I8, I16, I32, I64, LOWEST, Emitter
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.tile import STATE, TILE


class Arg(enum.IntEnum):
    """Index of each argument; pointers as integers, sizes in elements. CODES, SCALES and RING: of k_sem."""

    COUNTER = 0
    ITEMS = enum.auto()
    BATCH = enum.auto()
    PARTS = enum.auto()
    PART_TOKENS = enum.auto()
    LENGTHS = enum.auto()
    RESIDUAL = enum.auto()
    RING_SIZE = enum.auto()
    CAPACITY = enum.auto()
    Q_SEM = enum.auto()
    Q_GEO = enum.auto()
    CODES = enum.auto()
    CODES_GEO = enum.auto()
    CODES_V = enum.auto()
    SCALES = enum.auto()
    SCALES_GEO = enum.auto()
    SCALES_V = enum.auto()
    RING = enum.auto()
    RING_GEO = enum.auto()
    RING_V = enum.auto()
    NULL_SEM = enum.auto()
    NULL_GEO = enum.auto()
    NULL_V = enum.auto()
    NULL_HEADS = enum.auto()
    NULL_HEADS_GEO = enum.auto()
    NULL_HEADS_V = enum.auto()
    SCRATCH = enum.auto()
    OUT = enum.auto()
    LSE = enum.auto()


ENTRY_TYPE = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])


class Arguments:
    """Reads the array."""

    def __init__(self, e: Emitter) -> None:
        self._e = e
        self._array = e.function.args[0]

    def number(self, arg: int) -> ir.Value:
        return self._e.b.load(self._e.at(self._array, int(arg)))

    def pointer(self, arg: int, kind: ir.Type) -> ir.Value:
        return self._e.b.inttoptr(self.number(arg), kind.as_pointer())


def emit_work(module: ir.Module, spec: KernelSpec, stored: ir.Function, recent: ir.Function) -> ir.Function:
    """`decode_work`."""
    function = ir.Function(module, ENTRY_TYPE, name="decode_work")
    e = Emitter(module, function)
    b, args = e.b, Arguments(e)
    items = args.number(Arg.ITEMS)
    take, body, done = (function.append_basic_block(name) for name in ("take", "work", "end"))
    b.branch(take)
    b.position_at_end(take)
    item = b.atomic_rmw("add", function.args[0], e.i64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", item, items), body, done)
    b.position_at_end(body)
    _work(e, args, spec, item, stored, recent)
    b.branch(take)
    b.position_at_end(done)
    b.ret_void()
    return function


def _work(
    e: Emitter, args: Arguments, spec: KernelSpec, item: ir.Value, stored: ir.Function, recent: ir.Function
) -> None:
    b = e.b
    parts, size = args.number(Arg.PARTS), args.number(Arg.PART_TOKENS)
    part = b.urem(item, parts)
    pair = b.udiv(item, parts)
    unit, row = b.urem(pair, e.i64(spec.units)), b.udiv(pair, e.i64(spec.units))
    state_width = STATE + spec.v.width
    state = e.at(args.pointer(Arg.SCRATCH, F32), b.mul(item, e.i64(spec.share * state_width)))
    _clear(e, spec, state, state_width)
    length = b.sext(b.load(e.at(args.pointer(Arg.LENGTHS, I32), row)), I64)
    start = b.mul(part, size)
    stop = e.smaller(b.add(start, size), length)
    turn = e.larger(b.sub(length, args.number(Arg.RESIDUAL)), e.i64(0)) if spec.window else length
    first_head = b.add(b.mul(row, e.i64(spec.heads)), b.mul(unit, e.i64(spec.share)))
    queries = [
        e.at(args.pointer(arg, F32), b.mul(first_head, e.i64(tensor.width)))
        for arg, tensor in ((Arg.Q_SEM, spec.k_sem), (Arg.Q_GEO, spec.k_geo))
    ]
    call = _TileCall(e, args, spec, row, unit, [*queries, state])
    with e.loop(start, e.smaller(stop, turn), TILE) as token:
        call.emit(stored, token, e.smaller(b.sub(e.smaller(stop, turn), token), e.i64(TILE)), recent=False)
    if spec.window:
        ring = args.number(Arg.RING_SIZE)
        begin = e.local(e.larger(start, turn))
        with e.while_less(begin, stop) as token:
            to_wrap = b.sub(ring, b.urem(token, ring))
            count = e.smaller(e.smaller(b.sub(stop, token), e.i64(TILE)), to_wrap)
            call.emit(recent, token, count, recent=True)
            b.store(b.add(token, count), begin)


def _clear(e: Emitter, spec: KernelSpec, state: ir.Value, state_width: int) -> None:
    for head in range(spec.share):
        e.b.store(e.f32(LOWEST), e.at(state, head * state_width))
        with e.loop(e.i64(head * state_width + 1), e.i64((head + 1) * state_width)) as index:
            e.b.store(e.f32(0.0), e.at(state, index))


class _TileCall:
    """Calls a tile function with the addresses of a token."""

    def __init__(
        self,
        e: Emitter,
        args: Arguments,
        spec: KernelSpec,
        row: ir.Value,
        unit: ir.Value,
        tail: list[ir.Value],
    ) -> None:
        self._e, self._args, self._spec, self._row, self._tail = e, args, spec, row, tail
        self._heads = [
            e.b.udiv(e.b.mul(unit, e.i64(tensor.heads)), e.i64(spec.units)) for tensor in spec.tensors
        ]

    def emit(self, function: ir.Function, token: ir.Value, count: ir.Value, *, recent: bool) -> None:
        e, b, args = self._e, self._e.b, self._args
        capacity = args.number(Arg.CAPACITY)
        given: list[ir.Value] = []
        for number, tensor in enumerate(self._spec.tensors):
            head = self._heads[number]
            from_ring = recent and tensor.quantized
            rows = args.number(Arg.RING_SIZE) if from_ring else capacity
            place = b.urem(token, rows) if from_ring else token
            width = tensor.as_recent.row_bytes if from_ring else tensor.row_bytes
            line = b.add(b.mul(b.add(b.mul(self._row, e.i64(tensor.heads)), head), rows), place)
            base = args.pointer((Arg.RING if from_ring else Arg.CODES) + number, I8)
            scales = args.pointer(Arg.SCALES + number, I16)
            plane = b.mul(b.mul(self._row, e.i64(tensor.n_blocks)), capacity)
            given += [e.at(base, b.mul(line, e.i64(width))), e.at(scales, b.add(plane, token)), head]
        b.call(function, [*given, capacity, count, *self._tail])
