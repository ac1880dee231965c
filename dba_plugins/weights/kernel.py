"""The product of a few rows with a weight, y = x W^T, for weights that lie in memory as they do on disk:

    float32, bfloat16    y[m,n] = sum_k w[n,k] x[m,k] in float32, in vectors of eight, four sums side by side

and for weights in blocks of 32 values, without a dequantized value:

    w[n,k] = scale[n,g] code[n,k] + least[n,g]                                  g = k // 32
    y[m,n] = sum_g scale[n,g] s[m,h] (sum_k code[n,k] z[m,k])  +  sum_g least[n,g] (sum_k x[m,k])

x[m,:] is taken as z s: whole numbers z of 16 bits with a scale s for every 64 values (h = k // 64), which is
closer to float32 than bfloat16 is: |x - z s| <= s/2, s = max|x| / Z_MAX. Products of codes and z are summed
exactly in 32 bits. Every thread makes z for itself, which costs less than to wait for another to do it.

A step takes 64 values of a row: four vectors of 16 lanes. Vector j holds values 8j .. 8j+7 of both groups,
first group first, so that the sums of a group stay in one half of the vector and two scales serve it. Codes
of 8 bits lie in that order; of codes of 4 bits one lane of 16 bits holds those of the four vectors.
"""

from __future__ import annotations

import enum
import functools

import attrs
from llvmlite import ir

from dba_plugins.native import LANES
from dba_plugins.native.emit import F32, HALF, I8, I16, I32, I64, VF, VI, Emitter
from dba_plugins.weights import ENTRY

#: Values with one scale, and values of one step.
GROUP, STEP = 32, 64
#: Rows of a weight that are summed up together; a piece of work is so many times as many.
ROWS, PIECE = LANES, 4
#: The largest whole number that stands for an x. A lane of 32 bits adds up eight products with a code.
Z_MAX = 32767.0
_V16 = ir.VectorType(I16, 2 * LANES)
_VB = ir.VectorType(I8, 2 * LANES)
_VW = ir.VectorType(I32, 2 * LANES)


class Arg(enum.IntEnum):
    """Index of each argument; pointers as integers. OUT_STRIDE: from row to row of y."""

    COUNTER = 0
    X = enum.auto()
    CODES = enum.auto()
    SCALES = enum.auto()
    LEAST = enum.auto()
    OUT = enum.auto()
    OUT_STRIDE = enum.auto()


@attrs.frozen(kw_only=True)
class ProductSpec:
    """What a product is compiled for. rows: of the weight, a multiple of ROWS. columns: of x. bits: of a
    value: 32 and 16 (bfloat16) are floats, 8 signed codes without `least`, 4 codes with it. x_rows: 1 to
    MOST_ROWS.
    """

    rows: int
    columns: int
    bits: int
    x_rows: int

    @property
    def steps(self) -> int:
        return -(-self.columns // STEP)

    @property
    def groups(self) -> int:
        """Scales of a row in memory: whole vectors of them."""
        return -(-2 * self.steps // LANES) * LANES

    @property
    def items(self) -> int:
        return -(-self.rows // (ROWS * PIECE))


def build_module(spec: ProductSpec) -> ir.Module:
    """The function `product` for one thread among several."""
    module = ir.Module(name="dba_product")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), name=ENTRY)
    e = Emitter(module, function)
    b = e.b
    product = (_Floats if spec.bits >= 16 else _Blocks)(e, spec)
    take, body, done = (function.append_basic_block(name) for name in ("take", "work", "end"))
    b.branch(take)
    b.position_at_end(take)
    item = b.atomic_rmw("add", function.args[0], e.i64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", item, e.i64(spec.items)), body, done)
    b.position_at_end(body)
    first = b.mul(item, e.i64(ROWS * PIECE))
    last = e.smaller(b.add(first, e.i64(ROWS * PIECE)), e.i64(spec.rows))
    with e.loop(first, last, ROWS) as row:
        product.rows(row)
    b.branch(take)
    b.position_at_end(done)
    b.ret_void()
    return module


class _Product:
    """Where things lie."""

    def __init__(self, e: Emitter, spec: ProductSpec) -> None:
        self.e, self.spec = e, spec
        self.x, self.out = self._pointer(Arg.X, F32), self._pointer(Arg.OUT, F32)
        self.out_stride = e.b.load(e.at(e.function.args[0], int(Arg.OUT_STRIDE)))

    def _pointer(self, arg: Arg, kind: ir.Type) -> ir.Value:
        b = self.e.b
        return b.inttoptr(b.load(self.e.at(self.e.function.args[0], int(arg))), kind.as_pointer())

    def _store(self, y: ir.Value, x_row: int, row: ir.Value) -> None:
        """Eight results of a row of x, from `row` on."""
        self.e.store_vector(y, self.e.at(self.out, self.e.b.mul(self.out_stride, self.e.i64(x_row)), row))


class _Floats(_Product):
    """A weight of floats, row after row."""

    def rows(self, row: ir.Value) -> None:
        """y of eight rows of the weight, the first of which is `row`."""
        e, spec = self.e, self.spec
        kind = F32 if spec.bits == 32 else I16
        weight = self._pointer(Arg.CODES, kind)
        together = max(1, 4 // spec.x_rows)
        sums: list[list[ir.Value]] = [[] for _ in range(spec.x_rows)]
        for start in range(0, ROWS, together):
            lines = [
                e.at(weight, e.b.mul(e.b.add(row, e.i64(start + i)), e.i64(spec.columns)))
                for i in range(together)
            ]
            for x_row, totals in enumerate(self._dots(lines)):
                sums[x_row] += totals
        for x_row, totals in enumerate(sums):
            self._store(e.transposed_sums(totals), x_row, row)

    def _dots(self, lines: list[ir.Value]) -> list[list[ir.Value]]:
        """For every row of x, for each of `lines`, a vector whose lanes add up to the product."""
        e, spec = self.e, self.spec
        wide = (
            4 * LANES if len(lines) * spec.x_rows < 4 else LANES
        )  # enough sums that do not wait for another
        totals = [
            [[e.local(e.vf(0.0)) for _ in range(wide // LANES)] for _ in lines] for _ in range(spec.x_rows)
        ]
        whole = spec.columns // wide * wide
        with e.loop(e.i64(0), e.i64(whole), wide) as first:
            for part in range(wide // LANES):
                self._absorb(lines, totals, part, e.b.add(first, e.i64(part * LANES)), LANES)
        for first in range(whole, spec.columns, LANES):
            self._absorb(lines, totals, 0, e.i64(first), min(LANES, spec.columns - first))
        return [
            [functools.reduce(e.b.fadd, [e.b.load(part) for part in parts]) for parts in of_row]
            for of_row in totals
        ]

    def _absorb(
        self,
        lines: list[ir.Value],
        totals: list[list[list[ir.Value]]],
        part: int,
        first: ir.Value,
        count: int,
    ) -> None:
        e, spec = self.e, self.spec
        x = [e.load_vector(e.at(self.x, first, row * spec.columns), count) for row in range(spec.x_rows)]
        for i, line in enumerate(lines):
            raw = e.load_vector(e.at(line, first), count)
            value = raw if spec.bits == 32 else e.bf16_vector(raw)
            for row in range(spec.x_rows):
                total = totals[row][i][part]
                e.b.store(e.fma(value, x[row], e.b.load(total)), total)


class _Blocks(_Product):
    """A weight in blocks: x as whole numbers, then eight rows of the weight at a time."""

    def __init__(self, e: Emitter, spec: ProductSpec) -> None:
        super().__init__(e, spec)
        self.z = e.stack(I16, spec.x_rows * spec.steps * STEP)
        self.s = e.stack(F32, spec.x_rows * spec.steps)
        self.sums = e.stack(F32, spec.x_rows * spec.groups)
        self.codes = self._pointer(Arg.CODES, I8)
        self.scales, self.least = self._pointer(Arg.SCALES, HALF), self._pointer(Arg.LEAST, HALF)
        for row in range(spec.x_rows):
            self._take_x(row)

    def _take_x(self, row: int) -> None:
        """z, s and the sums of a row of x."""
        e, spec = self.e, self.spec
        whole = spec.columns // STEP
        with e.loop(e.i64(0), e.i64(whole)) as step:
            self._take(row, step, STEP)
        if whole < spec.steps:
            self._take(row, e.i64(whole), spec.columns - whole * STEP)
        for group in range(2 * spec.steps, spec.groups):
            e.b.store(e.f32(0.0), e.at(self.sums, row * spec.groups + group))

    def _take(self, row: int, step: ir.Value, count: int) -> None:
        e, b, spec = self.e, self.e.b, self.spec
        first = e.at(self.x, b.mul(step, e.i64(STEP)), row * spec.columns)
        parts = [min(LANES, count - start) for start in range(0, STEP, LANES)]
        values = [
            e.load_vector(e.at(first, LANES * i), n) if n > 0 else e.vf(0.0) for i, n in enumerate(parts)
        ]
        high, low = values[0], values[0]
        for value in values[1:]:
            high = e.maximum(high, value)
            low = b.select(b.fcmp_ordered("<", low, value), low, value)
        largest = e.lanes_max(e.maximum(high, b.fneg(low)))
        limit = e.f32(Z_MAX)
        nothing = b.fcmp_ordered("==", largest, e.f32(0.0))
        b.store(b.fdiv(largest, limit), e.at(self.s, row * spec.steps, step))
        factor = e.splat(b.fdiv(limit, b.select(nothing, e.f32(1.0), largest)))
        z = e.at(self.z, b.mul(step, e.i64(STEP)), row * spec.steps * STEP)
        for i, value in enumerate(values):
            whole = b.trunc(b.fptosi(e.rint(b.fmul(value, factor)), VI), ir.VectorType(I16, LANES))
            group, vector = divmod(i, GROUP // LANES)
            e.store_vector(whole, e.at(z, vector * 2 * LANES + group * LANES))
        if spec.bits == 4:
            for group in range(2):
                own = values[group * 4 : group * 4 + 4]
                total = b.fadd(b.fadd(own[0], own[1]), b.fadd(own[2], own[3]))
                place = e.at(self.sums, b.mul(step, e.i64(2)), row * spec.groups + group)
                b.store(e.lanes_sum(total), place)

    def rows(self, row: ir.Value) -> None:
        """y of eight rows of the weight, the first of which is `row`."""
        e, spec = self.e, self.spec
        together = 4 if spec.x_rows == 1 else 2
        sums: list[list[ir.Value]] = [[] for _ in range(spec.x_rows)]
        for start in range(0, ROWS, together):
            own = [e.b.add(row, e.i64(start + i)) for i in range(together)]
            for x_row, totals in enumerate(self._dots(own)):
                sums[x_row] += totals
        for x_row, totals in enumerate(sums):
            y = e.transposed_sums(totals)
            if spec.bits == 4:
                y = e.b.fadd(y, self._least(row, x_row))
            self._store(y, x_row, row)

    def _dots(self, rows: list[ir.Value]) -> list[list[ir.Value]]:
        """For every row of x, for each of `rows`, lanes that add up to the product without `least`."""
        e, b, spec = self.e, self.e.b, self.spec
        totals = [[e.local(e.vf(0.0)) for _ in rows] for _ in range(spec.x_rows)]
        with e.loop(e.i64(0), e.i64(spec.steps)) as step:
            z = [self._z(x_row, step) for x_row in range(spec.x_rows)]
            s = [e.splat(b.load(e.at(self.s, x_row * spec.steps, step))) for x_row in range(spec.x_rows)]
            for i, row in enumerate(rows):
                codes, scale = self._codes(row, step), self._scale(row, step)
                for x_row in range(spec.x_rows):
                    parts = [
                        _pair_sums(e, code, z_part) for code, z_part in zip(codes, z[x_row], strict=True)
                    ]
                    whole = b.add(b.add(parts[0], parts[1]), b.add(parts[2], parts[3]))
                    total = totals[x_row][i]
                    factor = b.fmul(scale, s[x_row])
                    b.store(e.fma(b.sitofp(whole, VF), factor, b.load(total)), total)
        return [[b.load(total) for total in of_row] for of_row in totals]

    def _z(self, x_row: int, step: ir.Value) -> list[ir.Value]:
        e, b = self.e, self.e.b
        first = e.at(self.z, b.mul(step, e.i64(STEP)), x_row * self.spec.steps * STEP)
        return [_load(e, e.at(first, 2 * LANES * j), _V16, 32) for j in range(STEP // (2 * LANES))]

    def _codes(self, row: ir.Value, step: ir.Value) -> list[ir.Value]:
        """The four vectors of codes, 16 bits each."""
        e, b, spec = self.e, self.e.b, self.spec
        row_bytes = spec.steps * STEP * spec.bits // 8
        step_bytes = STEP * spec.bits // 8
        first = e.at(self.codes, b.mul(row, e.i64(row_bytes)), b.mul(step, e.i64(step_bytes)))
        if spec.bits == 8:
            vectors = range(STEP // (2 * LANES))
            return [b.sext(_load(e, e.at(first, 2 * LANES * j), _VB, 1), _V16) for j in vectors]
        lanes = _load(e, first, _V16, 1)
        shifts = [ir.Constant(_V16, [4 * j] * 2 * LANES) for j in range(4)]
        mask = ir.Constant(_V16, [15] * 2 * LANES)
        return [b.and_(b.lshr(lanes, shift), mask) for shift in shifts]

    def _scale(self, row: ir.Value, step: ir.Value) -> ir.Value:
        """The two scales of a step, each in the four lanes that its group's sums are in."""
        e, b = self.e, self.e.b
        place = e.at(self.scales, b.mul(row, e.i64(self.spec.groups)), b.mul(step, e.i64(2)))
        two = b.fpext(_load(e, place, ir.VectorType(HALF, 2), 2), ir.VectorType(F32, 2))
        return e.shuffle(two, [0] * 4 + [1] * 4)

    def _least(self, row: ir.Value, x_row: int) -> ir.Value:
        """The eight rows' sum over g of least[g] (sum of x in g)."""
        e, b, spec = self.e, self.e.b, self.spec
        totals = []
        for i in range(ROWS):
            total = e.vf(0.0)
            line = e.at(self.least, b.mul(b.add(row, e.i64(i)), e.i64(spec.groups)))
            total = e.local(total)
            with e.loop(e.i64(0), e.i64(spec.groups), LANES) as group:
                least = b.fpext(e.load_vector(e.at(line, group)), VF)
                sums = e.load_vector(e.at(self.sums, x_row * spec.groups, group))
                b.store(e.fma(least, sums, b.load(total)), total)
            totals.append(b.load(total))
        return e.transposed_sums(totals)


def _load(e: Emitter, pointer: ir.Value, kind: ir.Type, align: int) -> ir.Value:
    loaded = e.b.load(e.b.bitcast(pointer, kind.as_pointer()))
    loaded.align = align
    return loaded


def _pair_sums(e: Emitter, a: ir.Value, z: ir.Value) -> ir.Value:
    """Sixteen products of 16 bits, added up in neighbours: eight sums of 32 bits."""
    b = e.b
    product = b.mul(b.sext(a, _VW), b.sext(z, _VW))
    even, odd = (e.shuffle(product, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    return b.add(even, odd)
