"""Reading a block of tokens of one cached tensor, and its part of the scores and of the output.

A head's values are cut into pieces, each with one scale, that a tensor core takes as they are:

    scores [N,R]  += scale_i [N,1] * (codes_i [N,P] @ q_i [P,R])           a scale is folded into the score
    out_i  [P,R]  += codes_i^T [P,N] @ (scale_i / norm [N,1] * p [N,R])    and into the weight

so codes are never multiplied by their scales, and stay exact. Tokens are rows, query heads are columns: eight
cost what one does. Where no such pieces exist (piece 0: odd widths, blocks that straddle heads) every value
is read by itself, as code * scale / largest scale of its token. TENSOR is a `spec.TensorLayout`.

Codes become numbers that a tensor core takes, 8- and 4-bit integers fp16, exactly:

    0x6400 | n  is the fp16 number 1024 + n            (n < 1024)
    q8_0:  (1024 + (code ^ 0x80)) - 1152 = code        q4_0:  (1024 + n) - 1032 = n - 8
    high nibbles without a shift:  (1024 + 16 n) / 16 - 72 = n - 8

Four codes to a register, two to an instruction. Where nibbles are taken, every four columns come in the
order 0, 2, 1, 3, which costs nothing: `column` says which one is where, and queries and output follow it.
nf4 looks its 16 levels up byte by byte with PRMT. Each has a plain twin, which the interpreter runs and which
gives the same bits.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import triton
import triton.language as tl

from dba_plugins.kv_formats.nf4 import NF4_LEVELS

LEVELS = tl.constexpr(NF4_LEVELS)


class HeadPlanes(NamedTuple):
    """One KV head of a cached tensor: where its codes, its ring and the row's scales begin; its number."""

    codes: Any
    scales: Any
    ring: Any
    head: Any


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


@triton.jit
def load_block(store, start, local, held, capacity, TENSOR: tl.constexpr, MASKED: tl.constexpr):
    """Tokens start + local [N] of one head -> its pieces as stored and their scales (bf16 [N]), as tuples.

    store: a `HeadPlanes`. MASKED: only tokens that are `held` are read.
    """
    D: tl.constexpr = TENSOR.width
    QBLOCK: tl.constexpr = TENSOR.qblock
    PIECE: tl.constexpr = TENSOR.piece
    ROW: tl.constexpr = TENSOR.row
    raw = ()
    scales = ()
    first = store.codes + (start + tl.zeros([], tl.int64)) * ROW
    if PIECE == 0:
        raw, scales = _load_values(
            first, store.scales + start, store.head, local, held, capacity, TENSOR, MASKED
        )
    else:
        value = tl.arange(0, PIECE)
        PIECES: tl.constexpr = ROW // PIECE
        for i in tl.static_range(PIECES):
            at = first + (local[:, None] * ROW + (i * PIECE + value)[None, :])
            if MASKED:
                raw = raw + (tl.load(at, mask=held[:, None], other=0),)
            else:
                raw = raw + (tl.load(at),)
        block = store.scales + (store.head * D // QBLOCK if QBLOCK > 0 else 0) * capacity.to(tl.int64) + start
        PLANES: tl.constexpr = TENSOR.planes
        for i in tl.static_range(PLANES):
            at = block + i * capacity.to(tl.int64) + local
            if MASKED:
                scales = scales + (tl.load(at, mask=held, other=0),)
            else:
                scales = scales + (tl.load(at),)
    return raw, scales


@triton.jit
def _load_values(first, scales_ptr, head, local, held, capacity, TENSOR: tl.constexpr, MASKED: tl.constexpr):
    """One value at a time: a tuple of one tile [N, P], and of the scale of each token, if any."""
    D: tl.constexpr = TENSOR.width
    QBLOCK: tl.constexpr = TENSOR.qblock
    ROW: tl.constexpr = TENSOR.row
    value = tl.arange(0, _width(TENSOR))
    ok = (value < D)[None, :] & (local >= 0)[:, None]
    if MASKED:
        ok = ok & held[:, None]
    x = tl.load(first + (local[:, None] * ROW + (value % ROW)[None, :]), mask=ok, other=0)
    scales = ()
    if QBLOCK > 0:
        x = x.to(tl.int32)
        if TENSOR.packed:
            x = tl.where((value >= ROW)[None, :], x >> 4, x & 15)
        at = ((head * D + value) // QBLOCK)[None, :] * capacity.to(tl.int64) + local[:, None]
        scale = tl.load(scales_ptr + at, mask=ok, other=0).to(tl.float32)
        largest = tl.max(scale, axis=1)
        share = scale / tl.maximum(largest, 2.0**-126)[:, None]
        x = tl.where(ok, level(x, TENSOR.format) * share, 0.0)
        scales = (largest,)
    return (x.to(tile_dtype(TENSOR)),), scales


@triton.constexpr_function
def _width(TENSOR):
    """Columns of the tile that is read value by value: a power of two that tensor cores take."""
    return max(16, triton.next_power_of_2(TENSOR.width))


@triton.constexpr_function
def tile_dtype(TENSOR):
    """What a tensor core multiplies: fp16, bf16, or fp32 by ordinary arithmetic."""
    return {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}[TENSOR.dtype]


@triton.jit
def multiply(a, b, c, GPU: tl.constexpr):
    """a @ b + c, float32 sums."""
    if a.dtype == tl.float32:
        out = tl.dot(a, b, c, input_precision="ieee")
    elif GPU:
        out = tl.dot(a, b, c)
    else:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision="ieee")
    return out


@triton.jit
def load_recent(ring_ptr, slot, held, TENSOR: tl.constexpr):
    """Tokens at these slots [N] of a head's ring -> tiles of the same columns as those of `tiles_of`."""
    D: tl.constexpr = TENSOR.width
    PIECE: tl.constexpr = TENSOR.piece
    row = slot * D  # a ring is short
    tiles = ()
    if PIECE == 0:
        value = tl.arange(0, _width(TENSOR))
        x = tl.load(
            ring_ptr + (row[:, None] + value[None, :]), mask=held[:, None] & (value < D)[None, :], other=0.0
        )
        tiles = (x.to(tile_dtype(TENSOR)),)
    else:
        COUNT: tl.constexpr = D // PIECE
        value = tl.arange(0, PIECE)
        for i in tl.static_range(COUNT):
            x = tl.load(
                ring_ptr + (row[:, None] + (first_value(i, TENSOR) + value)[None, :]),
                mask=held[:, None],
                other=0.0,
            )
            if TENSOR.packed:
                four = tl.reshape(x, [x.shape[0], PIECE // 4, 2, 2])
                x = tl.reshape(tl.permute(four, [0, 1, 3, 2]), [x.shape[0], PIECE])
            tiles = tiles + (x,)
    return tiles


@triton.jit
def arrived(raw, TENSOR: tl.constexpr, GPU: tl.constexpr):
    """The pieces, unchanged: the compiler moves no layout conversion of theirs before this."""
    if not GPU or TENSOR.piece == 0 or TENSOR.dtype == "fp32":
        return raw  # a block of float32 does not fit the registers at once
    PACK: tl.constexpr = 32 // raw[0].dtype.primitive_bitwidth
    pieces = ()
    for i in tl.static_range(len(raw)):
        piece = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [raw[i]], dtype=raw[i].dtype, is_pure=False, pack=PACK
        )
        pieces = pieces + (piece,)
    return pieces


@triton.jit
def tiles_of(raw, TENSOR: tl.constexpr, GPU: tl.constexpr):
    """The pieces as numbers: for nibbles the low and the high half of each."""
    tiles = ()
    for i in tl.static_range(len(raw)):
        if TENSOR.piece == 0:
            tiles = tiles + (raw[i],)
        elif TENSOR.packed:
            low, high = nibbles(raw[i], TENSOR.format, GPU)
            tiles = tiles + (low, high)
        elif TENSOR.format == "q8_0":
            tiles = tiles + (signed_bytes(raw[i], GPU),)
        else:
            tiles = tiles + (raw[i],)
    return tiles


@triton.constexpr_function
def first_value(i, TENSOR):
    """Which value of the head tile i begins with."""
    if TENSOR.packed and TENSOR.piece > 0:
        return i // 2 * TENSOR.piece + i % 2 * (TENSOR.width // 2)
    return i * TENSOR.piece


@triton.jit
def value_index(i: tl.constexpr, TENSOR: tl.constexpr):
    """The head's values [P] in the order in which tile i holds them."""
    PIECE: tl.constexpr = TENSOR.piece
    position = tl.arange(0, _width(TENSOR) if PIECE == 0 else PIECE)
    if TENSOR.packed and PIECE > 0:
        position = column(position)
    return first_value(i, TENSOR) + position


@triton.constexpr_function
def _scale_of(i, TENSOR):
    """Which of the head's scales tile i has."""
    return 0 if TENSOR.planes <= 1 else first_value(i, TENSOR) // TENSOR.qblock


@triton.jit
def add_scores(s, tiles, scales, q, TENSOR: tl.constexpr, GPU: tl.constexpr):
    """s [N,R] float32 plus this tensor's part; q: the terms [P,R] of each tile, one tile after the other."""
    TERMS: tl.constexpr = TENSOR.terms
    if len(scales) <= 1:
        part = tl.zeros_like(s) if len(scales) == 1 else s
        for i in tl.static_range(len(tiles)):
            for j in tl.static_range(TERMS):
                part = multiply(tiles[i], q[i * TERMS + j], part, GPU)
        s = s + part * scales[0].to(tl.float32)[:, None] if len(scales) == 1 else part
    else:
        for i in tl.static_range(len(tiles)):
            part = tl.zeros_like(s)
            for j in tl.static_range(TERMS):
                part = multiply(tiles[i], q[i * TERMS + j], part, GPU)
            s = s + part * scales[_scale_of(i, TENSOR)].to(tl.float32)[:, None]
    return s


@triton.jit
def split_terms(x, like, TERMS: tl.constexpr):
    """x float32 as a sum of TERMS tensors of the dtype of `like`, each holding what the earlier ones lost."""
    terms = ()
    for _ in tl.static_range(TERMS):
        term = x.to(like)
        terms = terms + (term,)
        x = x - term.to(tl.float32)
    return terms


@triton.jit
def add_values(acc, tiles, scales, p, norm, alpha, TENSOR: tl.constexpr, GPU: tl.constexpr):
    """acc: one [P,R] float32 for each tile -> acc * alpha [R] + tile^T @ (p [N,R] * scale * norm)."""
    TERMS: tl.constexpr = TENSOR.terms
    out = ()
    if len(scales) <= 1:
        w = p * (scales[0].to(tl.float32) * norm)[:, None] if len(scales) == 1 else p
        terms = split_terms(w, tiles[0].dtype, TERMS)
        for i in tl.static_range(len(tiles)):
            one = acc[i] * alpha[None, :]
            for j in tl.static_range(TERMS):
                one = multiply(tl.trans(tiles[i]), terms[j], one, GPU)
            out = out + (one,)
    else:
        for i in tl.static_range(len(tiles)):
            w = p * (scales[_scale_of(i, TENSOR)].to(tl.float32) * norm)[:, None]
            terms = split_terms(w, tiles[0].dtype, TERMS)
            one = acc[i] * alpha[None, :]
            for j in tl.static_range(TERMS):
                one = multiply(tl.trans(tiles[i]), terms[j], one, GPU)
            out = out + (one,)
    return out


@triton.jit
def largest_scale(scales):
    """The largest of a block's scales, a scalar."""
    most = scales[0].to(tl.float32)
    for i in tl.static_range(1, len(scales)):
        most = tl.maximum(most, scales[i].to(tl.float32))
    return tl.max(most, axis=0)
