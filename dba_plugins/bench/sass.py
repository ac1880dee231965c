"""Reads the machine code of a compiled GPU kernel as text: loads, spills, tensor-core work, its main loop.

The text is what `cuobjdump -sass` and `cuobjdump -res-usage` print for one cubin with one kernel. Nothing
here needs a GPU.

A loop is the stretch from the target of a backward branch to the branch; code that the compiler has moved
out of that stretch is not counted. The main loop is the innermost loop with the most tensor-core
instructions, then with the most global loads.

Whether an instruction waits for memory stands in its encoding (since sm_70), in the upper 64 bits: which of
six counters a load holds until its data are there (bits 46-48, 7 for none), and which counters an
instruction waits for (bits 52-57).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import attrs

_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);"
    r"(?:\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/)?"
)
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_TENSOR_CORE = ("HMMA", "IMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA", "BGMMA", "UTCHMMA", "UTCIMMA")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "LD")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@attrs.frozen
class Instruction:
    """One instruction; `target` is the address that a branch leads to.

    holds: the counter that it holds until its result is there; waits_for: those that it waits for; as bits.
    """

    address: int
    opcode: str
    target: int | None = None
    holds: int = 0
    waits_for: int = 0

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def is_tensor_core(self) -> bool:
        return self.base in _TENSOR_CORE

    @property
    def is_global_load(self) -> bool:
        """Asynchronous copies included."""
        return self.base in _GLOBAL_LOADS


@attrs.frozen(kw_only=True)
class MachineCode:
    """One kernel. Sizes in bytes per thread, `shared_bytes` per block, as the assembler states them."""

    instructions: tuple[Instruction, ...]
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int

    @property
    def spills(self) -> int:
        """Loads from and stores to local memory."""
        return sum(each.base in ("LDL", "STL") for each in self.instructions)

    @property
    def tensor_core(self) -> int:
        return sum(each.is_tensor_core for each in self.instructions)

    @property
    def global_loads(self) -> dict[int, int]:
        """How many global loads there are of each width, bytes per thread; asynchronous copies included."""
        found = Counter(load_bytes(each) for each in self.instructions if each.is_global_load)
        return dict(sorted(found.items()))

    @property
    def main_loop(self) -> tuple[Instruction, ...]:
        """The instructions of the main loop; none without a loop."""
        return max(_innermost(self.instructions), key=_weight, default=())


def load_bytes(instruction: Instruction) -> int:
    """Bytes that one thread loads: 4 unless the opcode says otherwise."""
    return next((_WIDTHS[part] for part in instruction.opcode.split(".") if part in _WIDTHS), 4)


def loads_before_barrier(loop: Sequence[Instruction]) -> int:
    """How many global loads of a loop stand before its first barrier: all of them, where it has none."""
    first = next((number for number, each in enumerate(loop) if each.base == "BAR"), len(loop))
    return sum(each.is_global_load for each in loop[:first])


def memory_waits(loop: Sequence[Instruction]) -> int:
    """How often a round of the loop waits for global memory, where loads on their way at once arrive at once.

    A wait for one load ends the wait for all before it. Loads of the round before count as on their way.
    """
    waits = pending = 0
    copying = False
    for _ in range(2):
        waits = 0
        for each in loop:
            if each.waits_for & pending or (copying and each.base == "DEPBAR"):
                waits, pending, copying = waits + 1, 0, False
            if each.is_global_load:
                pending |= each.holds
                copying |= each.base == "LDGSTS"
    return waits


def read_machine_code(sass: str, usage: str) -> MachineCode:
    """Both listings of one kernel. Raises ValueError where they hold no kernel, or more than one."""
    sizes = _USAGE.findall(usage)
    if len(sizes) != 1 or sass.count("Function :") > 1:
        raise ValueError(f"expected the listings of one kernel, got {len(sizes)} lines of resource usage")
    instructions = tuple(_instruction(*found) for found in _LINE.findall(sass))
    if not instructions:
        raise ValueError("the listing has no instruction; give the output of cuobjdump -sass")
    registers, stack, shared, local = (int(size) for size in sizes[0])
    return MachineCode(
        instructions=instructions,
        registers=registers,
        stack_bytes=stack,
        local_bytes=local,
        shared_bytes=shared,
    )


def _instruction(address: str, opcode: str, operands: str, upper: str) -> Instruction:
    target = _TARGET.search(operands) if opcode.partition(".")[0] == "BRA" else None
    bits = int(upper or "0", 16)
    counter = bits >> 46 & 7
    return Instruction(
        int(address, 16),
        opcode,
        int(target[1], 16) if target else None,
        holds=0 if not upper or counter == 7 else 1 << counter,
        waits_for=bits >> 52 & 63,
    )


def _innermost(code: Sequence[Instruction]) -> list[tuple[Instruction, ...]]:
    """The loops that hold no other loop. The branch to itself that ends every kernel is none."""
    spans = {
        (each.target, each.address) for each in code if each.target is not None and each.target < each.address
    }
    inner = [
        (first, last)
        for first, last in spans
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]
    return [tuple(each for each in code if first <= each.address <= last) for first, last in inner]


def _weight(loop: Sequence[Instruction]) -> tuple[int, int, int]:
    """By tensor-core instructions, then global loads, then length."""
    return (
        sum(each.is_tensor_core for each in loop),
        sum(each.is_global_load for each in loop),
        len(loop),
    )
