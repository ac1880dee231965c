"""The two functions of a kernel: `decode_work` takes pieces of work until none is left, `decode_merge` ends.

A piece of work is (batch row, unit, partition of the row's tokens); it leaves its state (m, l, acc) of every
query head in the scratch. Several threads run `decode_work` at once on the same arguments and share a
counter. Partitions past a row's length leave the neutral state. All arguments are in one array of int64
(`Arg`). `decode_merge` makes a query head's output of its partitions; the null token comes in here, once:

    M = max(max_p m_p, s_null)      l = sum_p l_p e^(m_p - M) + e^(s_null - M)
    out = (sum_p acc_p e^(m_p - M) + v_null e^(s_null - M)) / l       lse = M + ln l

Partitions with l = 0 saw nothing. A head that saw nothing at all gets zeros and a log-sum-exp of -inf.
"""

from __future__ import annotations

import enum

from llvmlite import ir

from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.tile import STATE, TILE, declare_tile, emit_tile
from dba_plugins.native import LANES
from dba_plugins.native.emit import F32, I8, I16, I32, I64, LOWEST, Emitter


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


#: The functions of a kernel's module.
ENTRIES = ("decode_work", "decode_merge")
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


def emit_merge(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """`decode_merge`; NULL_HEADS is 0 where there is no null token, LSE where none is wanted."""
    function = ir.Function(module, ENTRY_TYPE, name="decode_merge")
    e = Emitter(module, function)
    args = Arguments(e)
    heads = e.b.mul(args.number(Arg.BATCH), e.i64(spec.heads))
    with e.loop(e.i64(0), heads) as line:
        _head(e, args, spec, line)
    e.b.ret_void()
    return function


def _head(e: Emitter, args: Arguments, spec: KernelSpec, line: ir.Value) -> None:
    b, width = e.b, spec.v.width
    state_width = STATE + width
    head = b.urem(line, e.i64(spec.heads))
    row = b.udiv(line, e.i64(spec.heads))
    unit, place = b.udiv(head, e.i64(spec.share)), b.urem(head, e.i64(spec.share))
    parts = args.number(Arg.PARTS)
    first = b.mul(b.add(b.mul(row, e.i64(spec.units)), unit), parts)  # the item of partition 0
    scratch = args.pointer(Arg.SCRATCH, F32)
    out = e.at(args.pointer(Arg.OUT, F32), b.mul(line, e.i64(width)))

    def state(part: ir.Value) -> ir.Value:
        return e.at(
            scratch, b.mul(b.add(b.mul(b.add(first, part), e.i64(spec.share)), place), e.i64(state_width))
        )

    null_heads = args.number(Arg.NULL_HEADS)
    m, mass = e.local(e.f32(LOWEST)), e.local(e.f32(0.0))
    with e.loop(e.i64(0), e.i64(width)) as index:
        b.store(e.f32(0.0), e.at(out, index))
    with e.when(b.icmp_signed(">", null_heads, e.i64(0))):
        b.store(_null_score(e, args, spec, line, head), m)
        b.store(e.f32(1.0), mass)
        value = _null_row(e, args, spec, 2, width, head)
        with e.loop(e.i64(0), e.i64(width)) as index:
            b.store(b.load(e.at(value, index)), e.at(out, index))
    with e.loop(e.i64(0), parts) as part:
        own = state(part)
        with e.when(b.fcmp_ordered(">", b.load(e.at(own, 1)), e.f32(0.0))):
            _absorb(e, own, m, mass, out, width)
    _finish(e, args, line, m, mass, out, width)


def _null_row(
    e: Emitter, args: Arguments, spec: KernelSpec, number: int, width: int, head: ir.Value
) -> ir.Value:
    """The null token's k_sem (0), k_geo (1) or v (2) for a query head; each has heads of its own."""
    b = e.b
    own = b.udiv(b.mul(head, args.number(Arg.NULL_HEADS + number)), e.i64(spec.heads))
    return e.at(args.pointer(Arg.NULL_SEM + number, F32), b.mul(own, e.i64(width)))


def _null_score(e: Emitter, args: Arguments, spec: KernelSpec, line: ir.Value, head: ir.Value) -> ir.Value:
    total = e.local(e.f32(0.0))
    for number, query, tensor in ((0, Arg.Q_SEM, spec.k_sem), (1, Arg.Q_GEO, spec.k_geo)):
        if not tensor.width:
            continue
        q = e.at(args.pointer(query, F32), e.b.mul(line, e.i64(tensor.width)))
        k = _null_row(e, args, spec, number, tensor.width, head)
        for start in range(0, tensor.width, LANES):
            count = min(LANES, tensor.width - start)
            product = e.b.fmul(e.load_vector(e.at(q, start), count), e.load_vector(e.at(k, start), count))
            e.b.store(e.b.fadd(e.b.load(total), e.lanes_sum(product)), total)
    return e.b.load(total)


def _absorb(e: Emitter, own: ir.Value, m: ir.Value, mass: ir.Value, out: ir.Value, width: int) -> None:
    """Merge one partition's state into (m, mass, out)."""
    b = e.b
    before, theirs = b.load(m), b.load(own)
    top = e.maximum(before, theirs)
    keep, add = e.exp_scalar(b.fsub(before, top)), e.exp_scalar(b.fsub(theirs, top))
    b.store(top, m)
    b.store(b.fadd(b.fmul(b.load(mass), keep), b.fmul(b.load(e.at(own, 1)), add)), mass)
    for start in range(0, width, LANES):
        count = min(LANES, width - start)
        kept = b.fmul(e.load_vector(e.at(out, start), count), e.splat(keep))
        new = e.fma(e.load_vector(e.at(own, STATE + start), count), e.splat(add), kept)
        e.store_vector(new, e.at(out, start), count)


def _finish(
    e: Emitter, args: Arguments, line: ir.Value, m: ir.Value, mass: ir.Value, out: ir.Value, width: int
) -> None:
    b = e.b
    total = b.load(mass)
    seen = b.fcmp_ordered(">", total, e.f32(0.0))
    factor = b.fdiv(e.f32(1.0), b.select(seen, total, e.f32(1.0)))
    with e.loop(e.i64(0), e.i64(width)) as index:
        b.store(b.fmul(b.load(e.at(out, index)), factor), e.at(out, index))
    lse = args.number(Arg.LSE)
    with e.when(b.icmp_signed("!=", lse, e.i64(0))):
        where = e.at(b.inttoptr(lse, F32.as_pointer()), line)
        value = b.fadd(b.load(m), e.log_scalar(b.select(seen, total, e.f32(1.0))))
        b.store(b.select(seen, value, ir.Constant(F32, float("-inf"))), where)


def build_module(spec: KernelSpec, *, has_permute: bool) -> ir.Module:
    """has_permute: the machine has AVX2's look-up in a register."""
    module = ir.Module(name="dba_decode")
    stored = declare_tile(module, "tile_stored")
    emit_tile(module, stored, spec, recent=False, has_permute=has_permute)
    recent = stored
    if spec.window:
        recent = declare_tile(module, "tile_recent")
        emit_tile(module, recent, spec, recent=True, has_permute=has_permute)
    emit_work(module, spec, stored, recent)
    emit_merge(module, spec)
    return module
