"""Codes of a cache as numbers that a tensor core takes: 8- and 4-bit integers to fp16, exactly.

    0x6400 | n  is the fp16 number 1024 + n            (n < 1024)
    q8_0:  (1024 + (code ^ 0x80)) - 1152 = code        q4_0:  (1024 + n) - 1032 = n - 8
    high nibbles without a shift:  (1024 + 16 n) / 16 - 72 = n - 8

Four codes to a register, two to an instruction. Where nibbles are taken, every four columns come in the
order 0, 2, 1, 3, which costs nothing: `column` says which one is where, and queries and output follow it.
nf4 looks its 16 levels up byte by byte with PRMT. Each has a plain twin, which the interpreter runs and which
gives the same bits. Called by `tile`.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl

from dba_plugins.kv_formats.nf4 import NF4_LEVELS

LEVELS = tl.constexpr(NF4_LEVELS)


def _nf4_tables() -> dict[str, str]:
    """The low and high bytes of the levels in fp16, four to a register."""
    words = [struct.unpack("<H", struct.pack("<e", level))[0] for level in NF4_LEVELS]
    tables = {}
    for name, shift in (("L", 0), ("H", 8)):
        for part in range(4):
            four = [(word >> shift) & 0xFF for word in words[4 * part : 4 * part + 4]]
            tables[f"{name}{part}"] = f"0x{int.from_bytes(bytes(four), 'little'):08x}"
    return tables


_Q8 = """{
.reg .b32 y, a, b, one, bias;
xor.b32 y, $2, 0x80808080;
mov.b32 one, 0x64646464;
mov.b32 bias, 0xe480e480;
prmt.b32 a, y, one, 0x4140;
prmt.b32 b, y, one, 0x4342;
add.rn.f16x2 $0, a, bias;
add.rn.f16x2 $1, b, bias;
}"""

_Q4 = """{
.reg .b32 a, b, c, d, y, low, high, part;
shr.u32 y, $4, 8;
lop3.b32 a, $4, 0x000f000f, 0x64006400, 0xea;
lop3.b32 b, y, 0x000f000f, 0x64006400, 0xea;
lop3.b32 c, $4, 0x00f000f0, 0x64006400, 0xea;
lop3.b32 d, y, 0x00f000f0, 0x64006400, 0xea;
mov.b32 low, 0xe408e408;
mov.b32 high, 0xd480d480;
mov.b32 part, 0x2c002c00;
add.rn.f16x2 $0, a, low;
add.rn.f16x2 $1, b, low;
fma.rn.f16x2 $2, c, part, high;
fma.rn.f16x2 $3, d, part, high;
}"""

_HALF = """
and.b32 s, {word}, 0x7777;
shr.u32 t, {word}, 1;
lop3.b32 t, t, 0x4444, 0x3210, 0xea;
prmt.b32 p, {L0}, {L1}, s;
prmt.b32 q, {L2}, {L3}, s;
prmt.b32 {low}, p, q, t;
prmt.b32 p, {H0}, {H1}, s;
prmt.b32 q, {H2}, {H3}, s;
prmt.b32 {high}, p, q, t;
"""


def _nf4_code() -> str:
    """Nibbles 0..3 (the codes of bytes 0 and 1, low and high) and 4..7 (bytes 2 and 3) of a register."""
    tables = _nf4_tables()
    first = _HALF.format(word="$4", low="a", high="b", **tables)
    second = _HALF.format(word="y", low="c", high="d", **tables)
    return f"""{{
.reg .b32 a, b, c, d, e, f, g, h, s, t, p, q, y;
shr.u32 y, $4, 16;{first}{second}
prmt.b32 e, a, c, 0x6420;
prmt.b32 f, b, d, 0x6420;
prmt.b32 g, a, c, 0x7531;
prmt.b32 h, b, d, 0x7531;
prmt.b32 $0, e, f, 0x6240;
prmt.b32 $1, e, f, 0x7351;
prmt.b32 $2, g, h, 0x6240;
prmt.b32 $3, g, h, 0x7351;
}}"""


Q8_CODE = tl.constexpr(_Q8)
Q4_CODE = tl.constexpr(_Q4)
NF4_CODE = tl.constexpr(_nf4_code())


@triton.jit
def column(position):
    """Which column of four lies at a position, after `nibbles`; its own inverse."""
    return (position & -4) | ((position & 1) << 1) | ((position >> 1) & 1)


@triton.jit
def signed_bytes(x, GPU: tl.constexpr):
    """int8 -> fp16, the same shape."""
    if GPU:
        y = tl.inline_asm_elementwise(Q8_CODE, "=r,=r,r", [x], dtype=tl.float16, is_pure=True, pack=4)
    else:
        y = x.to(tl.float16)
    return y


@triton.jit
def nibbles(x, FORMAT: tl.constexpr, GPU: tl.constexpr):
    """uint8 [N, P] -> what the low and the high codes stand for, fp16 [N, P] each, columns as by `column`."""
    if GPU:
        code: tl.constexpr = NF4_CODE if FORMAT == "nf4" else Q4_CODE
        low, high = tl.inline_asm_elementwise(
            code, "=r,=r,=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        order = tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2])
        x = tl.reshape(tl.permute(order, [0, 1, 3, 2]), [x.shape[0], x.shape[1]]).to(tl.int32)
        low = level(x & 15, FORMAT).to(tl.float16)
        high = level(x >> 4, FORMAT).to(tl.float16)
    return low, high


@triton.jit
def level(code, FORMAT: tl.constexpr):
    """int32 codes -> float32: what a code stands for before its scale."""
    if FORMAT == "nf4":
        x = tl.zeros(code.shape, dtype=tl.float32)
        for i in tl.static_range(16):
            x = tl.where(code == i, LEVELS[i], x)
    elif FORMAT == "q4_0":
        x = (code - 8).to(tl.float32)
    else:
        x = code.to(tl.float32)
    return x
