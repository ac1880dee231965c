"""A thin layer over llvmlite's IR builder: vectors of eight floats, loops, e^x.

The vectors are LLVM's own: the compiler maps them to AVX2, AVX-512 or NEON registers.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

from llvmlite import ir

from dba_plugins.native import LANES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
HALF = ir.HalfType()
VF = ir.VectorType(F32, LANES)
VI = ir.VectorType(I32, LANES)
LOWEST = -1e30

_LOG2E = 1.4426950408889634
#: ln 2 in two parts: the first has few enough bits that n times it is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
#: e^r on [-ln2/2, ln2/2] minus 1 + r, divided by r^2: Taylor terms, relative error below 2^-24.
_EXP = (1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5)
_EXP_LEAST = -87.0


def as_float32(value: float) -> float:
    """The nearest float32, which is what an IR constant of that type must be."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


class Emitter:
    """Emits into one function. Index arithmetic is in int64."""

    def __init__(self, module: ir.Module, function: ir.Function) -> None:
        self.module = module
        self.function = function
        self.b = ir.IRBuilder(function.append_basic_block("entry"))

    # constants

    def i64(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def f32(self, value: float) -> ir.Constant:
        return ir.Constant(F32, as_float32(value))

    def vf(self, value: float) -> ir.Constant:
        return ir.Constant(VF, [as_float32(value)] * LANES)

    def vi(self, value: int) -> ir.Constant:
        return ir.Constant(VI, [value] * LANES)

    # memory

    def stack(self, kind: ir.Type, count: int) -> ir.Value:
        """An array on the stack, aligned for vectors. Call it at the start of a function."""
        array = self.b.alloca(ir.ArrayType(kind, max(1, count)))
        array.align = 64
        return self.b.bitcast(array, kind.as_pointer())

    def local(self, value: ir.Value) -> ir.Value:
        """A variable that holds `value`; the compiler keeps it in a register."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(value.type)
        self.b.store(value, slot)
        return slot

    def at(self, pointer: ir.Value, *index: ir.Value | int) -> ir.Value:
        """pointer + the sum of the indices, in elements."""
        total: ir.Value | None = None
        for part in index:
            value = self.i64(part) if isinstance(part, int) else part
            total = value if total is None else self.b.add(total, value)
        return self.b.gep(pointer, [total], inbounds=True)

    def load_vector(self, pointer: ir.Value, count: int = LANES) -> ir.Value:
        """`count` elements from an element's pointer, nothing read past them; zeros in the other lanes."""
        if count == LANES:
            return self._wide(pointer, LANES)
        element = pointer.type.pointee
        result: ir.Value = ir.Constant(ir.VectorType(element, LANES), None)
        done = 0
        for size in (4, 2, 1):
            if count - done >= size:
                part = self._wide(self.at(pointer, done), size)
                for lane in range(size):
                    value = self.b.extract_element(part, ir.Constant(I32, lane))
                    result = self.b.insert_element(result, value, ir.Constant(I32, done + lane))
                done += size
        return result

    def _wide(self, pointer: ir.Value, lanes: int) -> ir.Value:
        element = pointer.type.pointee
        vector = ir.VectorType(element, lanes)
        loaded = self.b.load(self.b.bitcast(pointer, vector.as_pointer()))
        loaded.align = 1 if element == I8 else 2 if element in (I16, HALF) else 4
        return loaded

    def store_vector(self, value: ir.Value, pointer: ir.Value, count: int = LANES) -> None:
        """The first `count` lanes, nothing written past them."""
        if count == LANES:
            stored = self.b.store(value, self.b.bitcast(pointer, value.type.as_pointer()))
            stored.align = 4
            return
        for lane in range(count):
            self.b.store(self.b.extract_element(value, ir.Constant(I32, lane)), self.at(pointer, lane))

    # vectors

    def splat(self, scalar: ir.Value) -> ir.Value:
        """The scalar in every lane."""
        vector = ir.VectorType(scalar.type, LANES)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.shuffle(first, [0] * LANES)

    def shuffle(self, value: ir.Value, lanes: Sequence[int], other: ir.Value | None = None) -> ir.Value:
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        second = ir.Constant(value.type, ir.Undefined) if other is None else other
        return self.b.shuffle_vector(value, second, mask)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self._call("llvm.fma", [a, b, c])

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger one; neither is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def lanes_sum(self, value: ir.Value) -> ir.Value:
        for width in (4, 2, 1):
            value = self.b.fadd(value, self.shuffle(value, [(lane + width) % LANES for lane in range(LANES)]))
        return self.b.extract_element(value, ir.Constant(I32, 0))

    def lanes_max(self, value: ir.Value) -> ir.Value:
        for width in (4, 2, 1):
            value = self.maximum(
                value, self.shuffle(value, [(lane + width) % LANES for lane in range(LANES)])
            )
        return self.b.extract_element(value, ir.Constant(I32, 0))

    def transposed_sums(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """Eight vectors -> one whose lane i is the sum of vector i's lanes: a tree of pairwise sums."""
        level = list(vectors)
        assert len(level) == LANES
        # after k levels a vector holds 2^k partial sums, interleaved so that the last level is in order
        even, odd = [0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]
        while len(level) > 1:
            level = [
                self.b.fadd(self.shuffle(a, even, b), self.shuffle(a, odd, b))
                for a, b in zip(level[::2], level[1::2], strict=True)
            ]
        return level[0]

    def exp(self, x: ir.Value) -> ir.Value:
        """e^x for x <= 0, one vector; 0 below -87. n = round(x log2 e), e^x = 2^n e^(x - n ln 2)."""
        bounded = self.maximum(x, self.vf(_EXP_LEAST))
        n = self.rint(self.b.fmul(bounded, self.vf(_LOG2E)))
        r = self.fma(n, self.vf(-_LN2_HIGH), bounded)
        r = self.fma(n, self.vf(-_LN2_LOW), r)
        series = self.vf(_EXP[0])
        for term in _EXP[1:]:
            series = self.fma(series, r, self.vf(term))
        value = self.fma(self.b.fmul(series, r), r, self.b.fadd(r, self.vf(1.0)))
        exponent = self.b.shl(self.b.add(self.b.fptosi(n, VI), self.vi(127)), self.vi(23))
        value = self.b.fmul(value, self.b.bitcast(exponent, VF))
        return self.b.select(self.b.fcmp_ordered(">=", x, self.vf(_EXP_LEAST)), value, self.vf(0.0))

    def exp_scalar(self, x: ir.Value) -> ir.Value:
        return self.b.extract_element(self.exp(self.splat(x)), ir.Constant(I32, 0))

    def rint(self, x: ir.Value) -> ir.Value:
        """The nearest whole number, the even one of two."""
        return self._call("llvm.rint", [x])

    def intrinsic(self, name: str) -> ir.Function:
        """An intrinsic of one vector."""
        full = f"{name}.v{LANES}f32"
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(VF, [VF]), name=full)
        return function

    def log_scalar(self, x: ir.Value) -> ir.Value:
        return self._call("llvm.log", [x])

    def _call(self, name: str, args: list[ir.Value]) -> ir.Value:
        kind = args[0].type
        full = f"{name}.{'f32' if kind == F32 else f'v{LANES}f32'}"
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(kind, [kind] * len(args)), name=full)
        return self.b.call(function, args)

    # control

    @contextlib.contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, step: ir.Value | int = 1) -> Iterator[ir.Value]:
        """for i in range(start, stop, step), int64."""
        stride = self.i64(step) if isinstance(step, int) else step
        head = self.function.append_basic_block("loop")
        body = self.function.append_basic_block("body")
        done = self.function.append_basic_block("done")
        before = self.b.block
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(I64)
        index.add_incoming(start, before)
        self.b.cbranch(self.b.icmp_signed("<", index, stop), body, done)
        self.b.position_at_end(body)
        yield index
        index.add_incoming(self.b.add(index, stride), self.b.block)
        self.b.branch(head)
        self.b.position_at_end(done)

    @contextlib.contextmanager
    def while_less(self, variable: ir.Value, stop: ir.Value) -> Iterator[ir.Value]:
        """while variable < stop: the body gets its value and must store a larger one."""
        head = self.function.append_basic_block("while")
        body = self.function.append_basic_block("body")
        done = self.function.append_basic_block("done")
        self.b.branch(head)
        self.b.position_at_end(head)
        value = self.b.load(variable)
        self.b.cbranch(self.b.icmp_signed("<", value, stop), body, done)
        self.b.position_at_end(body)
        yield value
        self.b.branch(head)
        self.b.position_at_end(done)

    @contextlib.contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        """if condition: ..."""
        body = self.function.append_basic_block("then")
        done = self.function.append_basic_block("after")
        self.b.cbranch(condition, body, done)
        self.b.position_at_end(body)
        yield
        self.b.branch(done)
        self.b.position_at_end(done)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)

    def bf16_scalar(self, pointer: ir.Value) -> ir.Value:
        """The bfloat16 at an int16 pointer, as float32."""
        return self.b.bitcast(self.b.shl(self.b.zext(self.b.load(pointer), I32), ir.Constant(I32, 16)), F32)

    def bf16_vector(self, bits: ir.Value) -> ir.Value:
        """Eight bfloat16 as int16 -> float32."""
        return self.b.bitcast(self.b.shl(self.b.zext(bits, VI), self.vi(16)), VF)
