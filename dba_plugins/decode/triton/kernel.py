"""The kernel of both passes: one program per split, KV head (and at most 16 of its query heads) and row.

Splits 0..S-2 share the row's whole blocks, the last one has the rest: the block that is not full and the
residual window. With one split the output is written; else the state (acc, m, mass) of each, which `merge`
brings together. What a row holds is read from the lengths on the device; no argument that Triton specializes
on depends on a length, the capacity or the number of splits. Called by `launch`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dba_plugins.decode.triton.attend import (
    largest_query,
    load_queries,
    power_of_two,
    recent_block,
    stored_block,
)
from dba_plugins.decode.triton.state import (
    LOG2_E,
    empty_state,
    load_state,
    null_state,
    store_output,
    store_state,
)

#: Tokens of the residual window that are read at a time.
RECENT = tl.constexpr(16)
#: Arguments that Triton must not specialize on, so that one compilation serves every size.
RUNTIME = ("capacity", "ring_size", "residual", "begin", "end")


@triton.jit
def plane(ptr, b, head, tokens, WIDTH: tl.constexpr, HEADS: tl.constexpr):
    """Where a head's [tokens, WIDTH] begin."""
    return ptr + (b * HEADS + head).to(tl.int64) * tokens * WIDTH


@triton.jit
def store_of(
    codes_ptr, scales_ptr, ring_ptr, b, unit, capacity, ring_size, T: tl.constexpr, UNITS: tl.constexpr
):
    """(codes of the unit's head, scales of the row, head, ring of the head) of a tensor."""
    PACKED: tl.constexpr = T[0] == "q4_0" or T[0] == "nf4"
    ROW: tl.constexpr = (T[2] + 1) // 2 if PACKED else T[2]
    BLOCKS: tl.constexpr = (T[1] * T[2] + T[3] - 1) // T[3] if T[3] > 0 else 0
    head = unit * T[1] // UNITS
    scales = scales_ptr + b * BLOCKS * capacity.to(tl.int64)
    ring = plane(ring_ptr, b, head, ring_size, T[2], T[1])
    return plane(codes_ptr, b, head, capacity, ROW, T[1]), scales, head, ring


@triton.jit
def heads_of(pid, H: tl.constexpr, UNITS: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr):
    """unit, and its query heads [R] with which of them there are."""
    unit = pid // CHUNKS
    row = pid % CHUNKS * ROWS + tl.arange(0, ROWS)
    return unit, unit * (H // UNITS) + row, row < H // UNITS


@triton.jit
def again(x, GPU: tl.constexpr):
    """x, in a way that keeps the compiler from using what it computed from x before."""
    if GPU:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)
    return x


@triton.jit
def rest_of_row(
    m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, full, stored, length, capacity, ring_size,
    K_SEM: tl.constexpr, K_GEO: tl.constexpr, V: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RING: tl.constexpr, GPU: tl.constexpr,
):  # fmt: skip
    """The state after the block that is not full (tokens full..stored-1) and the residual window."""
    if full < stored:
        m, mass, acc, norm = stored_block(
            m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, full, tl.arange(0, BLOCK), stored, capacity,
            K_SEM, K_GEO, V, TERMS, GPU, True,
        )  # fmt: skip
    if HAS_RING:
        for start in tl.range(stored, length, RECENT, num_stages=1):
            m, mass, acc, norm = recent_block(
                m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, start, tl.arange(0, RECENT), length,
                capacity, ring_size, K_SEM, K_GEO, V, TERMS, GPU,
            )  # fmt: skip
    return m, mass, acc, norm


@triton.jit(do_not_specialize=RUNTIME)
def attend_kernel(
    q_sem_ptr, q_geo_ptr,  # [B,H,Ds], [B,H,Dg]
    sem_codes_ptr, sem_scales_ptr, sem_ring_ptr,
    geo_codes_ptr, geo_scales_ptr, geo_ring_ptr,
    v_codes_ptr, v_scales_ptr, v_ring_ptr,
    lengths_ptr,  # [B] int32
    null_sem_ptr, null_geo_ptr, null_v_ptr,  # [heads,D] float32
    state_ptr,  # [B,H,S,Dv+2] float32: acc, m, mass
    out_ptr, lse_ptr,  # [B,H,Dv], [B,H] float32
    capacity, ring_size, residual, begin, end,  # begin..end-1: the stored tokens that this launch is about
    K_SEM: tl.constexpr, K_GEO: tl.constexpr, V: tl.constexpr,
    TILES: tl.constexpr, TERMS: tl.constexpr, NULL_HEADS: tl.constexpr,  # of k_sem, k_geo, v
    H: tl.constexpr, UNITS: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RING: tl.constexpr, HAS_NULL: tl.constexpr, HAS_LSE: tl.constexpr,
    SPLIT: tl.constexpr,  # the states are written, not the output
    GPU: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (splits, UNITS * CHUNKS, B)."""
    split, splits, b = tl.program_id(0), tl.num_programs(0), tl.program_id(2).to(tl.int64)
    unit, head, known = heads_of(tl.program_id(1), H, UNITS, CHUNKS, ROWS)
    q_sem_row, q_geo_row = q_sem_ptr + b * H * K_SEM[2], q_geo_ptr + b * H * K_GEO[2]
    most = largest_query(q_geo_row, head, known, K_GEO)
    if K_SEM[2] > 0:
        most = tl.maximum(most, largest_query(q_sem_row, head, known, K_SEM))
    up, down = power_of_two(most)
    c = up * LOG2_E
    q_sem = load_queries(q_sem_row, head, known, down, K_SEM, TILES[0], TERMS[0])
    q_geo = load_queries(q_geo_row, head, known, down, K_GEO, TILES[1], TERMS[1])
    sem = store_of(sem_codes_ptr, sem_scales_ptr, sem_ring_ptr, b, unit, capacity, ring_size, K_SEM, UNITS)
    geo = store_of(geo_codes_ptr, geo_scales_ptr, geo_ring_ptr, b, unit, capacity, ring_size, K_GEO, UNITS)
    val = store_of(v_codes_ptr, v_scales_ptr, v_ring_ptr, b, unit, capacity, ring_size, V, UNITS)
    m, mass, acc, norm = empty_state(ROWS, V, TILES[2])
    if HAS_NULL:
        if begin == 0:
            m, mass, acc, norm = null_state(
                q_sem_row, q_geo_row, null_sem_ptr, null_geo_ptr, null_v_ptr, head, known, down,
                K_SEM, K_GEO, V, TILES[2], NULL_HEADS, H,
            )  # fmt: skip
    if begin > 0:
        m, mass, acc, norm = load_state(state_ptr + (b * H + head) * (V[2] + 2), c, known, V, TILES[2])
    length = tl.minimum(tl.load(lengths_ptr + b), capacity)
    stored = length
    if HAS_RING:
        stored = tl.maximum(length - residual, 0)
    full = stored // BLOCK * BLOCK
    lo, hi = tl.minimum(begin, full), tl.minimum(end, full)
    if SPLIT:
        size = tl.cdiv(full // BLOCK, tl.maximum(splits - 1, 1)) * BLOCK
        lo, hi = tl.minimum(split * size, full), tl.minimum(split * size + size, full)
    for start in tl.range(lo, hi, BLOCK, num_stages=1):
        m, mass, acc, norm = stored_block(
            m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, start, tl.arange(0, BLOCK), length, capacity,
            K_SEM, K_GEO, V, TERMS, GPU, False,
        )  # fmt: skip
    if (split == splits - 1) & (end >= capacity):
        m, mass, acc, norm = rest_of_row(
            m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, full, stored, length, capacity, ring_size,
            K_SEM, K_GEO, V, TERMS, BLOCK, HAS_RING, GPU,
        )  # fmt: skip

    # computed anew, so that no register holds it during the loops
    unit, head, known = heads_of(again(tl.program_id(1), GPU), H, UNITS, CHUNKS, ROWS)
    at = again(tl.program_id(2), GPU).to(tl.int64) * H + head
    if SPLIT:
        store_state(state_ptr + (at * splits + split) * (V[2] + 2), m, mass, acc, norm, c, known, V)
    elif end < capacity:
        store_state(state_ptr + at * (V[2] + 2), m, mass, acc, norm, c, known, V)
    else:
        store_output(out_ptr + at * V[2], lse_ptr + at, m, mass, acc, norm, c, known, V, HAS_LSE)
