"""Reading a block of tokens of one cached tensor, and its part of the scores and of the output.

A head's values are cut into pieces, each with one scale, that a tensor core takes as they are:

    scores [N,R]  += scale_i [N,1] * (codes_i [N,P] @ q_i [P,R])           a scale is folded into the score
    out_i  [P,R]  += codes_i^T [P,N] @ (scale_i / norm [N,1] * p [N,R])    and into the weight

so codes are never multiplied by their scales, and stay exact. Tokens are rows, query heads are columns: eight
cost what one does. Where no such pieces exist (PIECE 0: odd widths, blocks that straddle heads) every value
is read by itself, as code * scale / largest scale of its token. Called by `attend`.

A tensor is described by a tuple TENSOR = (format, heads, width, qblock, piece, planes, dtype of tiles), see
`spec`. GPU is off in the interpreter, which multiplies bf16 wrongly and runs no assembly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dba_plugins.decode.triton.unpack import column, level, nibbles, signed_bytes


@triton.jit
def load_block(
    codes_ptr, scales_ptr, head, start, local, held, capacity, TENSOR: tl.constexpr, MASKED: tl.constexpr
):
    """Tokens start + local [N] of one head -> its pieces as stored and their scales (bf16 [N]), as tuples.

    codes_ptr: the head's plane; scales_ptr: the row's planes. MASKED: only tokens that are `held` are read.
    """
    FORMAT: tl.constexpr = TENSOR[0]
    D: tl.constexpr = TENSOR[2]
    QBLOCK: tl.constexpr = TENSOR[3]
    PIECE: tl.constexpr = TENSOR[4]
    PACKED: tl.constexpr = FORMAT == "q4_0" or FORMAT == "nf4"
    ROW: tl.constexpr = (D + 1) // 2 if PACKED else D
    raw = ()
    scales = ()
    first = codes_ptr + (start + tl.zeros([], tl.int64)) * ROW
    if PIECE == 0:
        raw, scales = _load_values(first, scales_ptr + start, head, local, held, capacity, TENSOR, MASKED)
    else:
        value = tl.arange(0, PIECE)
        PIECES: tl.constexpr = ROW // PIECE
        for i in tl.static_range(PIECES):
            at = first + (local[:, None] * ROW + (i * PIECE + value)[None, :])
            if MASKED:
                raw = raw + (tl.load(at, mask=held[:, None], other=0),)
            else:
                raw = raw + (tl.load(at),)
        block = scales_ptr + (head * D // QBLOCK if QBLOCK > 0 else 0) * capacity.to(tl.int64) + start
        PLANES: tl.constexpr = TENSOR[5]
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
    FORMAT: tl.constexpr = TENSOR[0]
    D: tl.constexpr = TENSOR[2]
    QBLOCK: tl.constexpr = TENSOR[3]
    PACKED: tl.constexpr = FORMAT == "q4_0" or FORMAT == "nf4"
    ROW: tl.constexpr = (D + 1) // 2 if PACKED else D
    value = tl.arange(0, _width(TENSOR))
    ok = (value < D)[None, :] & (local >= 0)[:, None]
    if MASKED:
        ok = ok & held[:, None]
    x = tl.load(first + (local[:, None] * ROW + (value % ROW)[None, :]), mask=ok, other=0)
    scales = ()
    if QBLOCK > 0:
        x = x.to(tl.int32)
        if PACKED:
            x = tl.where((value >= ROW)[None, :], x >> 4, x & 15)
        at = ((head * D + value) // QBLOCK)[None, :] * capacity.to(tl.int64) + local[:, None]
        scale = tl.load(scales_ptr + at, mask=ok, other=0).to(tl.float32)
        largest = tl.max(scale, axis=1)
        share = scale / tl.maximum(largest, 2.0**-126)[:, None]
        x = tl.where(ok, level(x, FORMAT) * share, 0.0)
        scales = (largest,)
    return (x.to(tile_dtype(TENSOR)),), scales


@triton.constexpr_function
def _width(TENSOR):
    """Columns of the tile that is read value by value: a power of two that tensor cores take."""
    return max(16, triton.next_power_of_2(TENSOR[2]))


@triton.constexpr_function
def tile_dtype(TENSOR):
    """What a tensor core multiplies: fp16, bf16, or fp32 by ordinary arithmetic."""
    return {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}[TENSOR[6]]


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
    D: tl.constexpr = TENSOR[2]
    PIECE: tl.constexpr = TENSOR[4]
    row = slot * D  # a ring is short
    tiles = ()
    if PIECE == 0:
        value = tl.arange(0, _width(TENSOR))
        x = tl.load(
            ring_ptr + (row[:, None] + value[None, :]), mask=held[:, None] & (value < D)[None, :], other=0.0
        )
        tiles = (x.to(tile_dtype(TENSOR)),)
    else:
        PACKED: tl.constexpr = TENSOR[0] == "q4_0" or TENSOR[0] == "nf4"
        COUNT: tl.constexpr = D // PIECE
        value = tl.arange(0, PIECE)
        for i in tl.static_range(COUNT):
            x = tl.load(
                ring_ptr + (row[:, None] + (first_value(i, TENSOR) + value)[None, :]),
                mask=held[:, None],
                other=0.0,
            )
            if PACKED:
                four = tl.reshape(x, [x.shape[0], PIECE // 4, 2, 2])
                x = tl.reshape(tl.permute(four, [0, 1, 3, 2]), [x.shape[0], PIECE])
            tiles = tiles + (x,)
    return tiles


@triton.jit
def tiles_of(raw, TENSOR: tl.constexpr, GPU: tl.constexpr):
    """The pieces as numbers: for nibbles the low and the high half of each."""
    FORMAT: tl.constexpr = TENSOR[0]
    PIECE: tl.constexpr = TENSOR[4]
    tiles = ()
    for i in tl.static_range(len(raw)):
        if PIECE == 0:
            tiles = tiles + (raw[i],)
        elif FORMAT == "q4_0" or FORMAT == "nf4":
            low, high = nibbles(raw[i], FORMAT, GPU)
            tiles = tiles + (low, high)
        elif FORMAT == "q8_0":
            tiles = tiles + (signed_bytes(raw[i], GPU),)
        else:
            tiles = tiles + (raw[i],)
    return tiles


@triton.constexpr_function
def first_value(i, TENSOR):
    """Which value of the head tile i begins with."""
    if TENSOR[0] in ("q4_0", "nf4") and TENSOR[4] > 0:
        return i // 2 * TENSOR[4] + i % 2 * (TENSOR[2] // 2)
    return i * TENSOR[4]


@triton.jit
def value_index(i: tl.constexpr, TENSOR: tl.constexpr):
    """The head's values [P] in the order in which tile i holds them."""
    PIECE: tl.constexpr = TENSOR[4]
    PACKED: tl.constexpr = (TENSOR[0] == "q4_0" or TENSOR[0] == "nf4") and PIECE > 0
    position = tl.arange(0, _width(TENSOR) if PIECE == 0 else PIECE)
    if PACKED:
        position = column(position)
    return first_value(i, TENSOR) + position


@triton.constexpr_function
def _scale_of(i, TENSOR):
    """Which of the head's scales tile i has."""
    return 0 if TENSOR[5] <= 1 else first_value(i, TENSOR) // TENSOR[3]


@triton.jit
def add_scores(s, tiles, scales, q, TENSOR: tl.constexpr, TERMS: tl.constexpr, GPU: tl.constexpr):
    """s [N,R] float32 plus this tensor's part; q: the terms [P,R] of each tile, one tile after the other."""
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
def add_values(
    acc, tiles, scales, p, norm, alpha, TENSOR: tl.constexpr, TERMS: tl.constexpr, GPU: tl.constexpr
):
    """acc: one [P,R] float32 for each tile -> acc * alpha [R] + tile^T @ (p [N,R] * scale * norm)."""
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
