"""Stored codes as floats: the only reader of a cache that knows the bits.

    fp32, fp16, bf16   the number itself
    q8_0               the code                                x = scale * code
    q4_0               the code 0..15; 8 too large             x = scale * (code - 8)
    nf4                the level                               x = scale * level

Scales are applied by the callers, once per block instead of once per value; so is the 8 of q4_0 (`OFFSET`).
"""

from __future__ import annotations

from llvmlite import ir

from dba_plugins.decode.cpu.spec import Piece, TensorSpec
from dba_plugins.kv_formats.nf4 import NF4_LEVELS
from dba_plugins.native import LANES
from dba_plugins.native.emit import F32, HALF, I8, I16, I32, VF, VI, Emitter, as_float32

#: What is subtracted from every converted code of a format.
OFFSET = {"q4_0": 8.0}
_ELEMENT = {"fp32": F32, "fp16": HALF, "bf16": I16, "q8_0": I8, "q4_0": I8, "nf4": I8}
_LEVELS = "nf4_levels"


class Converter:
    """Converts pieces of one token's row. Bytes that two pieces share are loaded once."""

    def __init__(self, e: Emitter, tensor: TensorSpec, *, has_permute: bool) -> None:
        self.e = e
        self.tensor = tensor
        self.has_permute = has_permute
        self._levels = _nf4_registers(e) if tensor.format == "nf4" and has_permute else None

    @property
    def offset(self) -> float:
        return OFFSET.get(self.tensor.format, 0.0)

    def row(self, pointer: ir.Value) -> Row:
        """pointer: i8*, the first byte of a head of a token."""
        element = _ELEMENT[self.tensor.format]
        return Row(self, self.e.b.bitcast(pointer, element.as_pointer()))

    def values(self, raw: ir.Value, piece: Piece) -> ir.Value:
        """The raw elements of a piece as floats; lanes past its count are those of raw zeros."""
        e, b = self.e, self.e.b
        match self.tensor.format:
            case "fp32":
                return raw
            case "fp16":
                return b.fpext(raw, VF)
            case "bf16":
                return e.bf16_vector(raw)
            case "q8_0":
                return b.sitofp(b.sext(raw, VI), VF)
        index = b.lshr(raw, e.vi(4)) if piece.high else b.and_(raw, e.vi(15))
        return b.uitofp(index, VF) if self.tensor.format == "q4_0" else self._level(index)

    def _level(self, index: ir.Value) -> ir.Value:
        """NF4 levels of eight codes: two look-ups in a register, or eight in memory."""
        e, b = self.e, self.e.b
        if self._levels is not None:
            permute = e.module.globals.get("llvm.x86.avx2.permps")
            if permute is None:
                kind = ir.FunctionType(VF, [VF, VI])
                permute = ir.Function(e.module, kind, name="llvm.x86.avx2.permps")
            low, high = (b.call(permute, [half, index]) for half in self._levels)
            return b.select(b.icmp_unsigned(">", index, e.vi(7)), high, low)
        table = _nf4_table(e)
        result: ir.Value = ir.Constant(VF, ir.Undefined)
        for lane in range(LANES):
            number = b.zext(b.extract_element(index, ir.Constant(I32, lane)), e.i64(0).type)
            result = b.insert_element(result, b.load(e.at(table, number)), ir.Constant(I32, lane))
        return result


class Row:
    """One head of one token."""

    def __init__(self, converter: Converter, pointer: ir.Value) -> None:
        self._converter = converter
        self._pointer = pointer
        self._loaded: dict[tuple[int, int], ir.Value] = {}

    def piece(self, piece: Piece) -> ir.Value:
        """Eight floats; those past the piece's count mean nothing but are finite."""
        e, nibbles = self._converter.e, self._converter.tensor.nibbles
        count = LANES if nibbles and piece.offset + LANES <= self._converter.tensor.row_bytes else piece.count
        key = (piece.offset, count)
        if key not in self._loaded:
            raw = e.load_vector(e.at(self._pointer, piece.offset), count)
            self._loaded[key] = e.b.zext(raw, VI) if nibbles else raw
        return self._converter.values(self._loaded[key], piece)


def _nf4_registers(e: Emitter) -> tuple[ir.Constant, ir.Constant]:
    levels = [as_float32(level) for level in NF4_LEVELS]
    return ir.Constant(VF, levels[:LANES]), ir.Constant(VF, levels[LANES:])


def _nf4_table(e: Emitter) -> ir.Value:
    if _LEVELS not in e.module.globals:
        kind = ir.ArrayType(F32, len(NF4_LEVELS))
        table = ir.GlobalVariable(e.module, kind, name=_LEVELS)
        table.initializer = ir.Constant(kind, [as_float32(level) for level in NF4_LEVELS])
        table.linkage, table.global_constant = "internal", True
    return e.b.bitcast(e.module.globals[_LEVELS], F32.as_pointer())
