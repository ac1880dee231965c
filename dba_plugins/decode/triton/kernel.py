"""The kernels of both passes. `attend_kernel`: one program per split, KV head (and at most 16 of its query
heads) and row.

Splits 0..S-2 share the row's whole blocks, the last one has the rest: the block that is not full and the
residual window. With one split the output is written; else the state (acc, m, mass) of each, which
`merge_kernel` brings together with the null token as one more partition:

    M = max(max_p m_p, s_null)        weight_p = 2^(m_p - M)        m and s_null in units of log 2
    out = (sum_p acc_p weight_p + v_null 2^(s_null - M)) / (sum_p mass_p weight_p + 2^(s_null - M))

What a row holds is read from the lengths on the device; no argument that Triton specializes on depends on a
length, the capacity or the number of splits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dba_plugins.decode.triton.attend import (
    LN_2,
    LOG2_E,
    LOWEST,
    Reading,
    empty_state,
    largest_query,
    load_queries,
    load_state,
    null_state,
    power_of_two,
    recent_block,
    store_output,
    store_state,
    stored_block,
)
from dba_plugins.decode.triton.tile import HeadPlanes

#: Tokens of the residual window that are read at a time.
RECENT = tl.constexpr(16)
#: Arguments that Triton must not specialize on, so that one compilation serves every size.
RUNTIME = ("capacity", "ring_size", "residual", "begin", "end")


class Planes(NamedTuple):
    """Of one cached tensor: codes [B,G,capacity,C], scales [B,n_blocks,capacity], ring [B,G,ring_size,D]."""

    codes: Any
    scales: Any
    ring: Any


@triton.jit
def plane(ptr, b, head, tokens, WIDTH: tl.constexpr, HEADS: tl.constexpr):
    """Where a head's [tokens, WIDTH] begin."""
    return ptr + (b * HEADS + head).to(tl.int64) * tokens * WIDTH


@triton.jit
def head_planes(planes, b, unit, capacity, ring_size, TENSOR: tl.constexpr, UNITS: tl.constexpr):
    """The unit's head of a tensor (`Planes`), as `HeadPlanes`."""
    head = unit * TENSOR.heads // UNITS
    scales = planes.scales + b * TENSOR.blocks * capacity.to(tl.int64)
    ring = plane(planes.ring, b, head, ring_size, TENSOR.width, TENSOR.heads)
    return HeadPlanes(plane(planes.codes, b, head, capacity, TENSOR.row, TENSOR.heads), scales, ring, head)


@triton.jit
def heads_of(pid, LAYOUT: tl.constexpr):
    """unit, and its query heads [R] with which of them there are."""
    SHARE: tl.constexpr = LAYOUT.heads // LAYOUT.units
    unit = pid // LAYOUT.chunks
    row = pid % LAYOUT.chunks * LAYOUT.rows + tl.arange(0, LAYOUT.rows)
    return unit, unit * SHARE + row, row < SHARE


@triton.jit
def again(x, GPU: tl.constexpr):
    """x, in a way that keeps the compiler from using what it computed from x before."""
    if GPU:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)
    return x


@triton.jit
def rest_of_row(state, reading, full, stored, LAYOUT: tl.constexpr):
    """The state after the block that is not full (tokens full..stored-1) and the residual window."""
    if full < stored:
        state = stored_block(state, reading, full, tl.arange(0, LAYOUT.block), stored, LAYOUT, True)
    if LAYOUT.has_ring:
        for start in tl.range(stored, reading.length, RECENT, num_stages=1):
            state = recent_block(state, reading, start, tl.arange(0, RECENT), LAYOUT)
    return state


@triton.jit(do_not_specialize=RUNTIME)
def attend_kernel(
    q_sem_ptr, q_geo_ptr,  # [B,H,Ds], [B,H,Dg]
    k_sem, k_geo, v,  # Planes of each cached tensor
    lengths_ptr,  # [B] int32
    null,  # NullParts: [heads,D] float32 each
    state_ptr,  # [B,H,S,Dv+2] float32: acc, m, mass
    out_ptr, lse_ptr,  # [B,H,Dv], [B,H] float32
    capacity, ring_size, residual, begin, end,  # begin..end-1: the stored tokens that this launch is about
    LAYOUT: tl.constexpr,  # a spec.KernelLayout
    NULL_HEADS: tl.constexpr, HAS_NULL: tl.constexpr, HAS_LSE: tl.constexpr,
    SPLIT: tl.constexpr,  # the states are written, not the output
):  # fmt: skip
    """See the module. Grid: (splits, units * chunks, B)."""
    H: tl.constexpr = LAYOUT.heads
    UNITS: tl.constexpr = LAYOUT.units
    BLOCK: tl.constexpr = LAYOUT.block
    DV: tl.constexpr = LAYOUT.v.width
    split, splits, b = tl.program_id(0), tl.num_programs(0), tl.program_id(2).to(tl.int64)
    unit, head, known = heads_of(tl.program_id(1), LAYOUT)
    q_sem_row, q_geo_row = q_sem_ptr + b * H * LAYOUT.k_sem.width, q_geo_ptr + b * H * LAYOUT.k_geo.width
    most = largest_query(q_geo_row, head, known, LAYOUT.k_geo)
    if LAYOUT.k_sem.width > 0:
        most = tl.maximum(most, largest_query(q_sem_row, head, known, LAYOUT.k_sem))
    up, down = power_of_two(most)
    c = up * LOG2_E
    q_sem = load_queries(q_sem_row, head, known, down, LAYOUT.k_sem)
    q_geo = load_queries(q_geo_row, head, known, down, LAYOUT.k_geo)
    sem = head_planes(k_sem, b, unit, capacity, ring_size, LAYOUT.k_sem, UNITS)
    geo = head_planes(k_geo, b, unit, capacity, ring_size, LAYOUT.k_geo, UNITS)
    val = head_planes(v, b, unit, capacity, ring_size, LAYOUT.v, UNITS)
    state = empty_state(LAYOUT.rows, LAYOUT.v)
    if HAS_NULL:
        if begin == 0:
            state = null_state(q_sem_row, q_geo_row, null, head, known, down, LAYOUT, NULL_HEADS)
    if begin > 0:
        state = load_state(state_ptr + (b * H + head) * (DV + 2), c, known, LAYOUT.v)
    length = tl.minimum(tl.load(lengths_ptr + b), capacity)
    reading = Reading(c, q_sem, q_geo, sem, geo, val, length, capacity, ring_size)
    stored = length
    if LAYOUT.has_ring:
        stored = tl.maximum(length - residual, 0)
    full = stored // BLOCK * BLOCK
    lo, hi = tl.minimum(begin, full), tl.minimum(end, full)
    if SPLIT:
        size = tl.cdiv(full // BLOCK, tl.maximum(splits - 1, 1)) * BLOCK
        lo, hi = tl.minimum(split * size, full), tl.minimum(split * size + size, full)
    for start in tl.range(lo, hi, BLOCK, num_stages=1):
        state = stored_block(state, reading, start, tl.arange(0, BLOCK), length, LAYOUT, False)
    if (split == splits - 1) & (end >= capacity):
        state = rest_of_row(state, reading, full, stored, LAYOUT)

    # computed anew, so that no register holds it during the loops
    unit, head, known = heads_of(again(tl.program_id(1), LAYOUT.gpu), LAYOUT)
    at = again(tl.program_id(2), LAYOUT.gpu).to(tl.int64) * H + head
    if SPLIT:
        store_state(state_ptr + (at * splits + split) * (DV + 2), state, c, known, LAYOUT.v)
    elif end < capacity:
        store_state(state_ptr + at * (DV + 2), state, c, known, LAYOUT.v)
    else:
        store_output(out_ptr + at * DV, lse_ptr + at, state, c, known, LAYOUT.v, HAS_LSE)


@triton.jit(do_not_specialize=("splits",))
def merge_kernel(
    state_ptr,  # [B,H,S,Dv+2] float32
    q_sem_ptr,
    q_geo_ptr,
    null,  # NullParts
    out_ptr,
    lse_ptr,
    splits,
    LAYOUT: tl.constexpr,
    NULL_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,  # splits that are read at a time
    HAS_NULL: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """The states of all splits, and the null token, to the output. One program per query head and row."""
    H: tl.constexpr = LAYOUT.heads
    DS: tl.constexpr = LAYOUT.k_sem.width
    DG: tl.constexpr = LAYOUT.k_geo.width
    DV: tl.constexpr = LAYOUT.v.width
    h, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = triton.next_power_of_2(DV)
    value = tl.arange(0, WIDTH)
    state = state_ptr + (b * H + h) * splits * (DV + 2)
    m = LOWEST
    mass = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    if HAS_NULL:
        s = _dot(q_geo_ptr + (b * H + h) * DG, null.k_geo + h * NULL_HEADS.k_geo // H * DG, DG)
        if DS > 0:
            s += _dot(q_sem_ptr + (b * H + h) * DS, null.k_sem + h * NULL_HEADS.k_sem // H * DS, DS)
        m = s * LOG2_E
        mass = 1.0
        acc = tl.load(null.v + h * NULL_HEADS.v // H * DV + value, mask=value < DV, other=0.0)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        there = split < splits
        at = state + split * (DV + 2)
        m_split = tl.load(at + DV, mask=there, other=LOWEST)
        mass_split = tl.load(at + DV + 1, mask=there, other=0.0)
        part = tl.load(at[:, None] + value[None, :], mask=there[:, None] & (value < DV)[None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(m_split, axis=0))
        weight = tl.where(mass_split > 0, tl.exp2(m_split - m_new), 0.0)
        keep = tl.exp2(m - m_new)
        mass = mass * keep + tl.sum(mass_split * weight, axis=0)
        acc = acc * keep + tl.sum(part * weight[:, None], axis=0)
        m = m_new
    seen = mass > 0
    total = tl.where(seen, mass, 1.0)
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (b * H + h) * DV + value, out, mask=value < DV)
    if HAS_LSE:
        tl.store(lse_ptr + b * H + h, tl.where(seen, (m + tl.log2(total)) * LN_2, float("-inf")))


@triton.jit
def _dot(x_ptr, y_ptr, D: tl.constexpr):
    """x . y of D values, float32."""
    value = tl.arange(0, triton.next_power_of_2(D))
    x = tl.load(x_ptr + value, mask=value < D, other=0.0).to(tl.float32)
    return tl.sum(x * tl.load(y_ptr + value, mask=value < D, other=0.0), axis=0)
