"""Machine code is read right: kernels of known loads, spills and loops, compiled for a GPU without one."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from dba_plugins.bench.sass import (
    MachineCode,
    loads_before_barrier,
    memory_waits,
    read_machine_code,
)
from dba_plugins.decode.triton.offline import compile_kernel

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
]


BLOCK = 1024
TARGETS = (80, 90, 100)


@triton.jit
def total(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out = the sum of x over n blocks."""
    at = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(n):
        acc += tl.load(x_ptr + i * BLOCK + at).to(tl.float32)
    tl.store(out_ptr + at, acc)


@triton.jit
def product(x_ptr, y_ptr, out_ptr, n, SIDE: tl.constexpr):
    """out = sum over n tiles of x @ y, every tile SIDE by SIDE."""
    row, column = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    tile = row * SIDE + column
    acc = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for i in range(n):
        start = i * SIDE * SIDE
        acc = tl.dot(tl.load(x_ptr + start + tile), tl.load(y_ptr + start + tile), acc)
    tl.store(out_ptr + tile, acc)


def code_of(kernel, types, constants, **more) -> MachineCode:
    listing = compile_kernel(kernel, types, constants, **more)
    return read_machine_code(listing.sass, listing.usage)


def sum_of(kind: str, block: int = BLOCK, **more) -> MachineCode:
    types = {"x_ptr": f"*{kind}", "out_ptr": "*fp32", "n": "i32"}
    return code_of(total, types, {"BLOCK": block}, num_stages=1, **more)


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(("kind", "block", "width"), [("i8", 128, 1), ("fp16", 128, 2), ("fp32", 128, 4)])
def test_one_value_per_thread_is_one_load_of_its_width(
    kind: str, block: int, width: int, capability: int
) -> None:
    code = sum_of(kind, block, capability=capability)
    assert set(code.global_loads) == {width}
    assert code.spills == code.local_bytes == code.tensor_core == 0


@pytest.mark.parametrize(("kind", "block", "width"), [("i8", 2048, 16), ("fp16", 512, 8), ("fp32", 512, 16)])
def test_neighbouring_values_of_a_thread_are_loaded_together(kind: str, block: int, width: int) -> None:
    assert set(sum_of(kind, block).global_loads) == {width}


def test_the_main_loop_is_found() -> None:
    code = sum_of("fp32", 512)
    loop = [each.base for each in code.main_loop]
    assert loop.count("BRA") >= 1
    assert loop.count("FADD") == 4 * loop.count("LDG")
    assert 0 < len(loop) < len(code.instructions)


def test_a_block_that_does_not_fit_the_registers_spills() -> None:
    code = sum_of("fp32", 32768, num_warps=4)
    assert code.spills > 0
    assert code.stack_bytes > 0


def test_tensor_core_instructions_are_as_many_as_the_shapes_say() -> None:
    """A 64 x 64 x 64 product is 4 * 8 * 4 of m16n8k16; each of 4 warps issues a quarter."""
    types = {"x_ptr": "*fp16", "y_ptr": "*fp16", "out_ptr": "*fp32", "n": "i32"}
    code = code_of(product, types, {"SIDE": 64}, capability=80, num_stages=1)
    assert sum(each.base == "HMMA" for each in code.main_loop) == 4 * 8 * 4 // 4
    assert code.shared_bytes >= 0


def test_listings_without_one_kernel_are_refused() -> None:
    usage = " REG:10 STACK:0 SHARED:0 LOCAL:0 "
    with pytest.raises(ValueError, match="no instruction"):
        read_machine_code("", usage)
    with pytest.raises(ValueError, match="listings of one kernel, got 0"):
        read_machine_code("/*0000*/ EXIT ;", "")


def listing_of(*lines: tuple[str, int, int]) -> MachineCode:
    """Instructions with the counter that each holds (7: none) and the bits of those that it waits for."""
    text = "\n".join(
        f"        /*{16 * number:04x}*/                   {line} ;   /* 0x0000000000007981 */\n"
        f"                                                   /* 0x{held << 46 | waits << 52:016x} */"
        for number, (line, held, waits) in enumerate(lines)
    )
    return read_machine_code(text, " REG:10 STACK:0 SHARED:0 LOCAL:0 ")


def test_loads_that_are_on_their_way_at_once_are_one_wait() -> None:
    loop = listing_of(
        ("LDG.E.128 R4, desc[UR4][R2.64]", 0, 0),
        ("LDG.E.128 R8, desc[UR4][R2.64+0x400]", 1, 0),
        ("STS.128 [R20], R4", 7, 0b01),
        ("STS.128 [R20+0x400], R8", 7, 0b10),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 7, 0),
        ("LDS.128 R12, [R20]", 3, 0),
        ("FADD R12, R12, R12", 7, 0b1000),  # waits for shared memory
        ("@P0 BRA 0x0", 7, 0),
    ).main_loop
    assert len(loop) == 8
    assert loads_before_barrier(loop) == 2
    assert memory_waits(loop) == 1


def test_a_load_behind_a_barrier_is_a_wait_of_its_own() -> None:
    loop = listing_of(
        ("LDG.E.128 R4, desc[UR4][R2.64]", 0, 0),
        ("STS.128 [R20], R4", 7, 0b1),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 7, 0),
        ("LDG.E.U16 R8, desc[UR4][R2.64+0x400]", 0, 0),
        ("STS.U16 [R20+0x400], R8", 7, 0b1),
        ("@P0 BRA 0x0", 7, 0),
    ).main_loop
    assert loads_before_barrier(loop) == 1
    assert memory_waits(loop) == 2


def test_what_the_round_before_has_asked_for_is_waited_for_too() -> None:
    loop = listing_of(
        ("FADD R4, R4, R8", 7, 0b1),
        ("LDG.E R8, desc[UR4][R2.64]", 0, 0),
        ("@P0 BRA 0x0", 7, 0),
    ).main_loop
    assert memory_waits(loop) == 1
    copies = listing_of(
        ("DEPBAR.LE SB0, 0x1", 7, 0),
        ("LDGSTS.E.128 [R4], desc[UR4][R2.64]", 7, 0),
        ("LDGDEPBAR", 0, 0),
        ("@P0 BRA 0x0", 7, 0),
    ).main_loop
    assert memory_waits(copies) == 1


@pytest.mark.parametrize("capability", TARGETS)
def test_without_barriers_all_loads_stand_before_the_first(capability: int) -> None:
    loop = sum_of("fp32", 2048, capability=capability).main_loop
    loads = sum(each.is_global_load for each in loop)
    assert loads_before_barrier(loop) == loads > 1
    assert 1 <= memory_waits(loop) <= loads
