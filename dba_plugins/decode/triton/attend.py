"""The online softmax of one program: the query heads of one KV head over a range of its tokens.

    s' = s / 2^e               2^e: the power of two at a head's largest |q|, so that q / 2^e is exact in fp16
    p  = 2^((s' - m) c)        c = 2^e log2(e); m [R] is the largest s' so far
    mass = mass alpha + sum p       acc_i = acc_i alpha + values_i^T @ p       alpha = 2^((m_old - m) c)

Values are weighted by p * scale / norm, where norm is the largest scale so far: no scale is too small or too
large for fp16. Three stretches: whole blocks as stored, without masks; the block that is not full; the
residual window. The state begins empty, as the null token (m = s_null, mass = 1, acc = v_null), or as an
earlier launch left it; it ends as the output, or in memory for the next launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dba_plugins.decode.triton.tile import (
    add_scores,
    add_values,
    arrived,
    largest_scale,
    load_block,
    load_recent,
    split_terms,
    tile_dtype,
    tiles_of,
    value_index,
)

LOWEST = tl.constexpr(-1e30)
LEAST_NORM = tl.constexpr(2.0**-126)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


class State(NamedTuple):
    """m, mass [R], acc (a tuple of tiles [P,R]), in multiples of norm."""

    m: Any
    mass: Any
    acc: Any
    norm: Any


class Reading(NamedTuple):
    """What a program reads blocks with: c [R], the terms [P,R] of each tile of the queries, and of the cache
    one head of each tensor (`HeadPlanes`), the row's length, and the tokens of its planes and of its ring.
    """

    c: Any
    q_sem: Any
    q_geo: Any
    k_sem: Any
    k_geo: Any
    v: Any
    length: Any
    capacity: Any
    ring_size: Any


class NullParts(NamedTuple):
    """The null token's three parts: their addresses, or their numbers of heads."""

    k_sem: Any
    k_geo: Any
    v: Any


@triton.jit
def power_of_two(largest):
    """2^e and 2^-e with 2^e <= largest < 2^(e+1), e at least -30: float32."""
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 97)
    up = (exponent << 23).to(tl.float32, bitcast=True)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return up, tl.where(exponent >= 254, 2.0**-126, down)


@triton.jit
def largest_query(q_ptr, head, known, TENSOR: tl.constexpr):
    """max |q| of each head [R] in one of the two paths; q_ptr: the row's queries [H,D]."""
    D: tl.constexpr = TENSOR.width
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    value = tl.arange(0, WIDTH)
    q = tl.load(
        q_ptr + value[:, None] + head[None, :] * D, mask=(value < D)[:, None] & known[None, :], other=0.0
    )
    return tl.max(tl.abs(q.to(tl.float32)), axis=0)


@triton.jit
def load_queries(q_ptr, head, known, down, TENSOR: tl.constexpr):
    """q * down as the tiles meet it: the terms [P,R] of each tile, in the tiles' dtype."""
    D: tl.constexpr = TENSOR.width
    TILES: tl.constexpr = TENSOR.tiles
    q = ()
    for i in tl.static_range(TILES):
        value = value_index(i, TENSOR)
        x = tl.load(
            q_ptr + value[:, None] + head[None, :] * D, mask=(value < D)[:, None] & known[None, :], other=0.0
        )
        q = q + split_terms(x.to(tl.float32) * down[None, :], tile_dtype(TENSOR), TENSOR.terms)
    return q


@triton.jit
def advance(state, s, c, held, v_tiles, v_scales, V: tl.constexpr, MASKED: tl.constexpr, GPU: tl.constexpr):
    """The state after a block whose scores s [N,R] are known."""
    if MASKED:
        s = tl.where(held[:, None], s, LOWEST)
    m = tl.maximum(state.m, tl.max(s, axis=0))
    p = tl.exp2((s - m[None, :]) * c[None, :])
    if MASKED:
        p = tl.where(held[:, None], p, 0.0)
    alpha = tl.exp2((state.m - m) * c)
    mass = state.mass * alpha + tl.sum(p, axis=0)
    norm = state.norm
    if len(v_scales) > 0:
        norm = tl.maximum(norm, largest_scale(v_scales))
        acc = add_values(state.acc, v_tiles, v_scales, p, 1.0 / norm, alpha * (state.norm / norm), V, GPU)
    elif V.qblock > 0:
        # the residual window of a block format: its values are no multiples of a scale
        norm = tl.maximum(norm, 1.0)
        acc = add_values(state.acc, v_tiles, v_scales, p / norm, 1.0, alpha * (state.norm / norm), V, GPU)
    else:
        acc = add_values(state.acc, v_tiles, v_scales, p, 1.0, alpha, V, GPU)
    return State(m, mass, acc, norm)


@triton.jit
def stored_block(state, reading, start, local, stop, LAYOUT: tl.constexpr, MASKED: tl.constexpr):
    """The state after tokens start + local [N] as stored; MASKED: those below `stop` alone."""
    GPU: tl.constexpr = LAYOUT.gpu
    capacity = reading.capacity
    held = start + local < stop
    # loads do not pass the barriers of layout conversions, so all of them stand before the first
    if LAYOUT.k_sem.width > 0:
        sem_raw, sem_scales = load_block(reading.k_sem, start, local, held, capacity, LAYOUT.k_sem, MASKED)
    geo_raw, geo_scales = load_block(reading.k_geo, start, local, held, capacity, LAYOUT.k_geo, MASKED)
    v_raw, v_scales = load_block(reading.v, start, local, held, capacity, LAYOUT.v, MASKED)
    s = tl.zeros([local.shape[0], state.m.shape[0]], dtype=tl.float32)
    geo_tiles = tiles_of(arrived(geo_raw, LAYOUT.k_geo, GPU), LAYOUT.k_geo, GPU)
    s = add_scores(s, geo_tiles, geo_scales, reading.q_geo, LAYOUT.k_geo, GPU)
    if LAYOUT.k_sem.width > 0:
        sem_tiles = tiles_of(arrived(sem_raw, LAYOUT.k_sem, GPU), LAYOUT.k_sem, GPU)
        s = add_scores(s, sem_tiles, sem_scales, reading.q_sem, LAYOUT.k_sem, GPU)
    v_tiles = tiles_of(arrived(v_raw, LAYOUT.v, GPU), LAYOUT.v, GPU)
    return advance(state, s, reading.c, held, v_tiles, v_scales, LAYOUT.v, MASKED, GPU)


@triton.jit
def newest(store, slot, start, local, held, capacity, TENSOR: tl.constexpr):
    """Tiles of the newest tokens: from the ring in a block format, as stored in a float format."""
    if TENSOR.qblock > 0:
        tiles = load_recent(store.ring, slot, held, TENSOR)
    else:
        tiles, _ = load_block(store, start, local, held, capacity, TENSOR, True)
    return tiles


@triton.jit
def recent_block(state, reading, start, local, LAYOUT: tl.constexpr):
    """The state after tokens start + local [N] of the residual window."""
    GPU: tl.constexpr = LAYOUT.gpu
    capacity = reading.capacity
    held = start + local < reading.length
    slot = (start + local) % reading.ring_size
    s = tl.zeros([local.shape[0], state.m.shape[0]], dtype=tl.float32)
    if LAYOUT.k_sem.width > 0:
        tiles = newest(reading.k_sem, slot, start, local, held, capacity, LAYOUT.k_sem)
        s = add_scores(s, tiles, (), reading.q_sem, LAYOUT.k_sem, GPU)
    tiles = newest(reading.k_geo, slot, start, local, held, capacity, LAYOUT.k_geo)
    s = add_scores(s, tiles, (), reading.q_geo, LAYOUT.k_geo, GPU)
    tiles = newest(reading.v, slot, start, local, held, capacity, LAYOUT.v)
    return advance(state, s, reading.c, held, tiles, (), LAYOUT.v, True, GPU)


@triton.jit
def empty_state(ROWS: tl.constexpr, V: tl.constexpr):
    """The state before any token."""
    TILES: tl.constexpr = V.tiles
    m = tl.full([ROWS], LOWEST, tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    norm = tl.full([], LEAST_NORM, tl.float32) if V.qblock > 0 else tl.full([], 1.0, tl.float32)
    acc = ()
    for i in tl.static_range(TILES):
        acc = acc + (tl.zeros([value_index(i, V).shape[0], ROWS], tl.float32),)
    return State(m, mass, acc, norm)


@triton.jit
def null_score(q_ptr, null_ptr, head, known, null_head, D: tl.constexpr):
    """q . k_null of each head [R]; q_ptr: the row's queries [H,D], null_ptr [heads,D] float32."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    value = tl.arange(0, WIDTH)
    ok = (value < D)[:, None] & known[None, :]
    q = tl.load(q_ptr + value[:, None] + head[None, :] * D, mask=ok, other=0.0).to(tl.float32)
    k = tl.load(null_ptr + value[:, None] + null_head[None, :] * D, mask=ok, other=0.0)
    return tl.sum(q * k, axis=0)


@triton.jit
def load_tiles(at, known, V: tl.constexpr):
    """Values [Dv] at the addresses `at` [R], float32, as the tiles of acc hold them."""
    TILES: tl.constexpr = V.tiles
    tiles = ()
    for i in tl.static_range(TILES):
        value = value_index(i, V)
        ok = (value < V.width)[:, None] & known[None, :]
        tiles = tiles + (tl.load(at[None, :] + value[:, None], mask=ok, other=0.0),)
    return tiles


@triton.jit
def normed(values, QBLOCK: tl.constexpr):
    """A tuple of tiles [P,R] as a norm, a scalar far below their largest value, and as multiples of it.

    In a float format the norm is 1.
    """
    norm = tl.full([], 1.0, tl.float32)
    if QBLOCK > 0:
        norm = tl.full([], LEAST_NORM, tl.float32)
        for i in tl.static_range(len(values)):
            norm = tl.maximum(norm, tl.max(tl.max(tl.abs(values[i]), axis=1), axis=0) * 2.0**-20)
    acc = ()
    for i in tl.static_range(len(values)):
        acc = acc + (values[i] / norm,)
    return acc, norm


@triton.jit
def null_state(q_sem_row, q_geo_row, null, head, known, down, LAYOUT: tl.constexpr, NULL_HEADS: tl.constexpr):
    """The state after the null token alone. null, NULL_HEADS: `NullParts`."""
    H: tl.constexpr = LAYOUT.heads
    geo_head = head * NULL_HEADS.k_geo // H
    s = null_score(q_geo_row, null.k_geo, head, known, geo_head, LAYOUT.k_geo.width)
    if LAYOUT.k_sem.width > 0:
        sem_head = head * NULL_HEADS.k_sem // H
        s += null_score(q_sem_row, null.k_sem, head, known, sem_head, LAYOUT.k_sem.width)
    values = load_tiles(null.v + head * NULL_HEADS.v // H * LAYOUT.v.width, known, LAYOUT.v)
    acc, norm = normed(values, LAYOUT.v.qblock)
    return State(s * down, tl.full([head.shape[0]], 1.0, tl.float32), acc, norm)


@triton.jit
def load_state(at, c, known, V: tl.constexpr):
    """The state that an earlier launch left at the addresses `at` [R]."""
    mass = tl.load(at + V.width + 1, mask=known, other=0.0)
    m = tl.where(mass > 0, tl.load(at + V.width, mask=known, other=0.0) / c, LOWEST)
    acc, norm = normed(load_tiles(at, known, V), V.qblock)
    return State(m, mass, acc, norm)


@triton.jit
def store_state(at, state, c, known, V: tl.constexpr):
    """acc, m in units of log 2, and mass of the heads whose states begin at `at` [R]."""
    for i in tl.static_range(len(state.acc)):
        value = value_index(i, V)
        ok = (value < V.width)[:, None] & known[None, :]
        tl.store(at[None, :] + value[:, None], state.acc[i] * state.norm, mask=ok)
    tl.store(at + V.width, tl.where(state.mass > 0, state.m * c, LOWEST), mask=known)
    tl.store(at + V.width + 1, state.mass, mask=known)


@triton.jit
def store_output(out, lse, state, c, known, V: tl.constexpr, HAS_LSE: tl.constexpr):
    """acc / mass to the addresses `out` [R], the log-sum-exp to `lse` [R]; nothing seen gives 0 and -inf."""
    seen = state.mass > 0
    total = tl.where(seen, state.mass, 1.0)
    for i in tl.static_range(len(state.acc)):
        value = value_index(i, V)
        ok = (value < V.width)[:, None] & known[None, :]
        x = (state.acc[i] * (state.norm / total)[None, :]).to(out.dtype.element_ty)
        tl.store(out[None, :] + value[:, None], x, mask=ok)
    if HAS_LSE:
        tl.store(lse, tl.where(seen, (state.m * c + tl.log2(total)) * LN_2, float("-inf")), mask=known)
