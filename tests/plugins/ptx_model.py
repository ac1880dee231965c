"""What a few PTX instructions do, in Python: enough to run the assembly of the Triton kernels on a CPU."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

MASK = 0xFFFFFFFF
_LINE = re.compile(r"^([\w.]+)\s+(.+);$")


def run(code: str, inputs: Sequence[int], outputs: int) -> list[int]:
    """The 32-bit outputs $0.. of an inline assembly whose inputs are $outputs.. . Raises KeyError for an
    instruction that is not modelled.
    """
    registers = {f"${outputs + i}": value & MASK for i, value in enumerate(inputs)}
    for line in code.strip().strip("{}").splitlines():
        found = _LINE.match(line.strip())
        if found is None or found[1].startswith(".reg"):
            continue
        target, *operands = (part.strip() for part in found[2].split(","))
        values = [int(x, 16) if x.startswith("0x") else registers.get(x) for x in operands]
        values = [int(x) if value is None else value for x, value in zip(operands, values, strict=True)]
        registers[target] = INSTRUCTIONS[found[1]](*values) & MASK
    return [registers[f"${i}"] for i in range(outputs)]


def lop3(a: int, b: int, c: int, table: int) -> int:
    out = 0
    for i in range(8):
        if table >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def prmt(a: int, b: int, selector: int) -> int:
    both = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    out = []
    for i in range(4):
        pick = selector >> 4 * i & 0xF
        byte = both[pick & 7]
        out.append((0xFF if byte & 0x80 else 0) if pick & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def halves(x: int) -> tuple[float, float]:
    """The two fp16 numbers of a register, low first."""
    return struct.unpack("<2e", x.to_bytes(4, "little"))


def register(low: float, high: float) -> int:
    """Two numbers rounded to fp16, half to even."""
    return int.from_bytes(struct.pack("<2e", low, high), "little")


def add(a: int, b: int) -> int:
    return register(*(x + y for x, y in zip(halves(a), halves(b), strict=True)))


def fma(a: int, b: int, c: int) -> int:
    """Products of fp16 numbers and their sums are exact in double precision for the numbers that occur."""
    return register(*(x * y + z for x, y, z in zip(halves(a), halves(b), halves(c), strict=True)))


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "xor.b32": lambda a, b: a ^ b,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "add.rn.f16x2": add,
    "fma.rn.f16x2": fma,
}
