"""`decode_merge`: the partitions of every query head become its output; the null token comes in here, once.

    M = max(max_p m_p, s_null)      l = sum_p l_p e^(m_p - M) + e^(s_null - M)
    out = (sum_p acc_p e^(m_p - M) + v_null e^(s_null - M)) / l       lse = M + ln l

Partitions with l = 0 saw nothing. A head that saw nothing at all gets zeros and a log-sum-exp of -inf.
"""

from __future__ import annotations

from llvmlite import ir

from dba_plugins.decode.cpu.emit import F32, LOWEST, Emitter
from dba_plugins.decode.cpu.layout import LANES
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.tile import STATE
from dba_plugins.decode.cpu.work import ENTRY_TYPE, Arg, Arguments


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
