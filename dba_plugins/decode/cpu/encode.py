"""The compiled writer: float32 tokens to codes, block scales and the fp16 ring, bit for bit as the codecs do.

    scale = round_up_bf16(max|block| / levels)
    code  = round_half_even(x / scale), or the nearest NF4 level

Every token is done on its own, its flattened [heads * width] row in vectors of as many values as lie in one
head and one block. `write_check` looks at all values first and sets the flag BAD; `write_tokens` stores them.
Both take pieces of CHUNK tokens of a row until none is left, so several threads can run them at once.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable

from llvmlite import ir

from dba_core.cache.blocks import MIN_SCALE
from dba_core.contracts import FP16_MAX
from dba_plugins.decode.cpu.kernel import ENTRY_TYPE, Arguments
from dba_plugins.decode.cpu.spec import KernelSpec, TensorSpec
from dba_plugins.kv_formats.nf4 import NF4_LEVELS
from dba_plugins.kv_formats.plugins import BF16, FP16, FP32, NF4, Q4_0, Q8_0
from dba_plugins.native import LANES
from dba_plugins.native.emit import F32, HALF, I8, I16, I32, I64, VI, Emitter, as_float32

WRITER_ENTRIES = ("write_check", "write_tokens")
#: Tokens of one piece of work.
CHUNK = 32
_MAX_INPUT = {each.name: each.facts.max_input for each in (FP32, FP16, BF16, Q8_0, Q4_0, NF4)}
_LEVELS = {"q8_0": 127.0, "q4_0": 7.0, "nf4": 1.0}
_VB = ir.VectorType(I8, LANES)
_V16 = ir.VectorType(I16, LANES)
_VH = ir.VectorType(HALF, LANES)


class WriteArg(enum.IntEnum):
    """Index of each argument. For each of k_sem, k_geo, v: the input, its strides, and the planes."""

    COUNTER = 0
    ITEMS = enum.auto()
    TOKENS = enum.auto()
    LENGTHS = enum.auto()
    CAPACITY = enum.auto()
    RING_SIZE = enum.auto()
    BAD = enum.auto()
    TENSORS = enum.auto()


class TensorArg(enum.IntEnum):
    """Arguments of one tensor, from `TENSORS` on. Strides in elements."""

    X = 0
    STRIDE_ROW = enum.auto()
    STRIDE_HEAD = enum.auto()
    STRIDE_TOKEN = enum.auto()
    CODES = enum.auto()
    SCALES = enum.auto()
    RING = enum.auto()


N_ARGS = int(WriteArg.TENSORS) + 3 * len(TensorArg)


def build_writer(spec: KernelSpec) -> ir.Module:
    """The module with both functions."""
    module = ir.Module(name="dba_writer")
    _entry(module, spec, "write_check", _check)
    _entry(module, spec, "write_tokens", _write)
    return module


_Body = Callable[["_Token", TensorSpec, int], None]


def _entry(module: ir.Module, spec: KernelSpec, name: str, body: _Body) -> None:
    """A function that does `body` for every token and tensor, sharing the work through the counter."""
    function = ir.Function(module, ENTRY_TYPE, name=name)
    e = Emitter(module, function)
    b, args = e.b, Arguments(e)
    buffers = _Buffers(e, spec)
    tokens = args.number(WriteArg.TOKENS)
    chunks = b.sdiv(b.add(tokens, e.i64(CHUNK - 1)), e.i64(CHUNK))
    take, work, done = (function.append_basic_block(part) for part in ("take", "work", "end"))
    b.branch(take)
    b.position_at_end(take)
    item = b.atomic_rmw("add", function.args[0], e.i64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", item, args.number(WriteArg.ITEMS)), work, done)
    b.position_at_end(work)
    row, first = b.udiv(item, chunks), b.mul(b.urem(item, chunks), e.i64(CHUNK))
    with e.loop(first, e.smaller(b.add(first, e.i64(CHUNK)), tokens)) as token:
        at = _Token(e, args, spec, buffers, row, token)
        for number, tensor in enumerate(spec.tensors):
            if tensor.width:
                body(at, tensor, number)
    b.branch(take)
    b.position_at_end(done)
    b.ret_void()


class _Buffers:
    """Room on the stack for one token: maxima and scales of its blocks, its codes."""

    def __init__(self, e: Emitter, spec: KernelSpec) -> None:
        blocks = max(tensor.n_blocks for tensor in spec.tensors)
        values = max(tensor.heads * (tensor.width + 1) for tensor in spec.tensors)
        self.scales = e.stack(F32, blocks)
        self.codes = e.stack(I8, values + LANES)


class _Token:
    """One token of one batch row."""

    def __init__(
        self,
        e: Emitter,
        args: Arguments,
        spec: KernelSpec,
        buffers: _Buffers,
        row: ir.Value,
        token: ir.Value,
    ) -> None:
        self.e, self.args, self.spec, self.buffers = e, args, spec, buffers
        self.row, self.token = row, token
        length = e.b.sext(e.b.load(e.at(args.pointer(WriteArg.LENGTHS, I32), row)), I64)
        self.position = e.b.add(length, token)

    def argument(self, number: int, which: TensorArg) -> int:
        return int(WriteArg.TENSORS) + number * len(TensorArg) + int(which)

    def head_input(self, number: int, head: ir.Value) -> ir.Value:
        """float*: the token's values of one head."""
        e, b = self.e, self.e.b
        strides = (
            (self.row, TensorArg.STRIDE_ROW),
            (head, TensorArg.STRIDE_HEAD),
            (self.token, TensorArg.STRIDE_TOKEN),
        )
        parts = [b.mul(index, self.args.number(self.argument(number, which))) for index, which in strides]
        return e.at(self.args.pointer(self.argument(number, TensorArg.X), F32), *parts)

    def line(self, tensor: TensorSpec, head: ir.Value, tokens: ir.Value, position: ir.Value) -> ir.Value:
        """Index of (row, head, position) in a plane of `tokens` tokens."""
        b, e = self.e.b, self.e
        return b.add(b.mul(b.add(b.mul(self.row, e.i64(tensor.heads)), head), tokens), position)


def _step(tensor: TensorSpec) -> int:
    """Values of a vector: as many as lie in one head and one block, at most eight."""
    return math.gcd(math.gcd(tensor.width, tensor.qblock or LANES), LANES)


def _check(at: _Token, tensor: TensorSpec, number: int) -> None:
    """Set BAD where a value is not finite or too large."""
    e, b = at.e, at.e.b
    limit = _MAX_INPUT[tensor.format]
    if at.spec.window and tensor.quantized:
        limit = min(limit, FP16_MAX)
    step = _step(tensor)
    absolute = e.intrinsic("llvm.fabs")
    good = e.local(ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES))
    with e.loop(e.i64(0), e.i64(tensor.heads)) as head:
        x = at.head_input(number, head)
        with e.loop(e.i64(0), e.i64(tensor.width), step) as d:
            size = b.call(absolute, [e.load_vector(e.at(x, d), step)])
            b.store(b.and_(b.load(good), b.fcmp_ordered("<=", size, e.vf(limit))), good)
    bits = b.bitcast(b.load(good), ir.IntType(LANES))
    with e.when(b.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), (1 << LANES) - 1))):
        b.store(e.i64(1), e.at(e.function.args[0], int(WriteArg.BAD)))


def _write(at: _Token, tensor: TensorSpec, number: int) -> None:
    e = at.e
    if tensor.quantized:
        _write_scales(at, tensor, number)
        if at.spec.window:
            _write_ring(at, tensor, number)
    with e.loop(e.i64(0), e.i64(tensor.heads)) as head:
        x = at.head_input(number, head)
        if tensor.quantized:
            _head_codes(at, tensor, x, head)
        _store_head(at, tensor, number, x, head)


def _write_scales(at: _Token, tensor: TensorSpec, number: int) -> None:
    """The bf16 scales of the token's blocks, and the same as floats in the buffer."""
    e, b = at.e, at.e.b
    buffer, step = at.buffers.scales, _step(tensor)
    absolute = e.intrinsic("llvm.fabs")
    with e.loop(e.i64(0), e.i64(tensor.n_blocks)) as block:
        b.store(e.f32(0.0), e.at(buffer, block))
    with e.loop(e.i64(0), e.i64(tensor.heads)) as head:
        x = at.head_input(number, head)
        with e.loop(e.i64(0), e.i64(tensor.width), step) as d:
            size = b.call(absolute, [e.load_vector(e.at(x, d), step)])
            slot = e.at(buffer, _block(at, tensor, head, d))
            b.store(e.maximum(b.load(slot), e.lanes_max(size)), slot)
    capacity = at.args.number(WriteArg.CAPACITY)
    plane = at.args.pointer(at.argument(number, TensorArg.SCALES), I16)
    first = b.mul(at.row, e.i64(tensor.n_blocks))
    with e.loop(e.i64(0), e.i64(tensor.n_blocks)) as block:
        slot = e.at(buffer, block)
        scale = e.maximum(b.fdiv(b.load(slot), e.f32(_LEVELS[tensor.format])), e.f32(MIN_SCALE))
        bits = b.lshr(b.add(b.bitcast(scale, I32), ir.Constant(I32, 0xFFFF)), ir.Constant(I32, 16))
        place = b.add(b.mul(b.add(first, block), capacity), at.position)
        b.store(b.trunc(bits, I16), e.at(plane, place))
        b.store(b.bitcast(b.shl(bits, ir.Constant(I32, 16)), F32), slot)


def _block(at: _Token, tensor: TensorSpec, head: ir.Value, d: ir.Value) -> ir.Value:
    b, e = at.e.b, at.e
    return b.udiv(b.add(b.mul(head, e.i64(tensor.width)), d), e.i64(tensor.qblock))


def _head_codes(at: _Token, tensor: TensorSpec, x: ir.Value, head: ir.Value) -> None:
    """One byte per value of this head, into the buffer; a zero behind the last."""
    e, b, step = at.e, at.e.b, _step(tensor)
    with e.loop(e.i64(0), e.i64(tensor.width), step) as d:
        scale = e.splat(b.load(e.at(at.buffers.scales, _block(at, tensor, head, d))))
        quotient = b.fdiv(e.load_vector(e.at(x, d), step), scale)
        codes = _nearest(e, quotient) if tensor.format == "nf4" else _rounded(e, quotient, tensor.format)
        e.store_vector(b.trunc(codes, _VB), e.at(at.buffers.codes, d), step)
    b.store(ir.Constant(I8, 0), e.at(at.buffers.codes, tensor.width))


def _rounded(e: Emitter, quotient: ir.Value, stored: str) -> ir.Value:
    """round_half_even(x / scale), clamped; q4_0 is stored plus 8."""
    b = e.b
    low, high, offset = (-127.0, 127.0, 0.0) if stored == "q8_0" else (-8.0, 7.0, 8.0)
    rounded = e.rint(quotient)
    bounded = e.maximum(rounded, e.vf(low))
    bounded = b.select(b.fcmp_ordered("<", bounded, e.vf(high)), bounded, e.vf(high))
    return b.fptosi(b.fadd(bounded, e.vf(offset)), VI)


def _nearest(e: Emitter, quotient: ir.Value) -> ir.Value:
    """How many midpoints between neighbouring levels lie below."""
    total: ir.Value = e.vi(0)
    for low, high in itertools.pairwise(NF4_LEVELS):
        above = e.b.fcmp_ordered(">", quotient, e.vf(as_float32((low + high) / 2)))
        total = e.b.add(total, e.b.zext(above, VI))
    return total


def _store_head(at: _Token, tensor: TensorSpec, number: int, x: ir.Value, head: ir.Value) -> None:
    """The token's codes of this head, in its plane."""
    e, b = at.e, at.e.b
    line = at.line(tensor, head, at.args.number(WriteArg.CAPACITY), at.position)
    base = at.args.pointer(at.argument(number, TensorArg.CODES), I8)
    target = e.at(base, b.mul(line, e.i64(tensor.row_bytes)))
    if tensor.nibbles:
        half = tensor.row_bytes
        for start in range(0, half, LANES):
            count = min(LANES, half - start)
            low = e.load_vector(e.at(at.buffers.codes, start), count)
            high = e.load_vector(e.at(at.buffers.codes, half + start), count)
            shifted = b.shl(high, ir.Constant(_VB, [4] * LANES))
            e.store_vector(b.or_(low, shifted), e.at(target, start), count)
        return
    for start in range(0, tensor.width, LANES):
        count = min(LANES, tensor.width - start)
        if tensor.format == "q8_0":
            e.store_vector(e.load_vector(e.at(at.buffers.codes, start), count), e.at(target, start), count)
        else:
            _store_floats(e, tensor.format, e.load_vector(e.at(x, start), count), target, start, count)


def _store_floats(
    e: Emitter, stored: str, values: ir.Value, target: ir.Value, start: int, count: int
) -> None:
    b = e.b
    if stored == "fp32":
        e.store_vector(values, e.at(b.bitcast(target, F32.as_pointer()), start), count)
    elif stored == "fp16":
        e.store_vector(b.fptrunc(values, _VH), e.at(b.bitcast(target, HALF.as_pointer()), start), count)
    else:
        bits = b.bitcast(values, VI)
        odd = b.and_(b.lshr(bits, e.vi(16)), e.vi(1))
        rounded = b.lshr(b.add(b.add(bits, e.vi(0x7FFF)), odd), e.vi(16))
        e.store_vector(b.trunc(rounded, _V16), e.at(b.bitcast(target, I16.as_pointer()), start), count)


def _write_ring(at: _Token, tensor: TensorSpec, number: int) -> None:
    """The token in the fp16 ring, unless a later one of the same call takes its slot."""
    e, b = at.e, at.e.b
    ring = at.args.number(WriteArg.RING_SIZE)
    kept = b.icmp_signed(">=", at.token, b.sub(at.args.number(WriteArg.TOKENS), ring))
    with e.when(kept):
        slot = b.urem(at.position, ring)
        plane = at.args.pointer(at.argument(number, TensorArg.RING), I8)
        with e.loop(e.i64(0), e.i64(tensor.heads)) as head:
            x = at.head_input(number, head)
            line = at.line(tensor, head, ring, slot)
            target = e.at(plane, b.mul(line, e.i64(2 * tensor.width)))
            for start in range(0, tensor.width, LANES):
                count = min(LANES, tensor.width - start)
                _store_floats(e, "fp16", e.load_vector(e.at(x, start), count), target, start, count)
