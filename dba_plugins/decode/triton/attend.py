"""The online softmax of one program: the query heads of one KV head over a range of its tokens.

    s' = s / 2^e               2^e: the power of two at a head's largest |q|, so that q / 2^e is exact in fp16
    p  = 2^((s' - m) c)        c = 2^e log2(e); m [R] is the largest s' so far
    mass = mass alpha + sum p       acc_i = acc_i alpha + values_i^T @ p       alpha = 2^((m_old - m) c)

Values are weighted by p * scale / norm, where norm is the largest scale so far: no scale is too small or too
large for fp16. Three stretches: whole blocks as stored, without masks; the block that is not full; the
residual window. Called by `kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dba_plugins.decode.triton.tile import (
    add_scores,
    add_values,
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
    D: tl.constexpr = TENSOR[2]
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    value = tl.arange(0, WIDTH)
    q = tl.load(
        q_ptr + value[:, None] + head[None, :] * D, mask=(value < D)[:, None] & known[None, :], other=0.0
    )
    return tl.max(tl.abs(q.to(tl.float32)), axis=0)


@triton.jit
def load_queries(q_ptr, head, known, down, TENSOR: tl.constexpr, TILES: tl.constexpr, TERMS: tl.constexpr):
    """q * down as the tiles meet it: the terms [P,R] of each tile, in the tiles' dtype."""
    D: tl.constexpr = TENSOR[2]
    q = ()
    for i in tl.static_range(TILES):
        value = value_index(i, TENSOR)
        x = tl.load(
            q_ptr + value[:, None] + head[None, :] * D, mask=(value < D)[:, None] & known[None, :], other=0.0
        )
        q = q + split_terms(x.to(tl.float32) * down[None, :], tile_dtype(TENSOR), TERMS)
    return q


@triton.jit
def advance(
    m, mass, acc, norm, s, c, held, v_tiles, v_scales,
    V: tl.constexpr, TERMS: tl.constexpr, MASKED: tl.constexpr, GPU: tl.constexpr,
):  # fmt: skip
    """The state after a block whose scores s [N,R] are known."""
    if MASKED:
        s = tl.where(held[:, None], s, LOWEST)
    m_new = tl.maximum(m, tl.max(s, axis=0))
    p = tl.exp2((s - m_new[None, :]) * c[None, :])
    if MASKED:
        p = tl.where(held[:, None], p, 0.0)
    alpha = tl.exp2((m - m_new) * c)
    mass = mass * alpha + tl.sum(p, axis=0)
    if len(v_scales) > 0:
        norm_new = tl.maximum(norm, largest_scale(v_scales))
        acc = add_values(acc, v_tiles, v_scales, p, 1.0 / norm_new, alpha * (norm / norm_new), V, TERMS, GPU)
        norm = norm_new
    elif V[3] > 0:
        # the residual window of a block format: its values are no multiples of a scale
        norm_new = tl.maximum(norm, 1.0)
        acc = add_values(acc, v_tiles, v_scales, p / norm_new, 1.0, alpha * (norm / norm_new), V, TERMS, GPU)
        norm = norm_new
    else:
        acc = add_values(acc, v_tiles, v_scales, p, 1.0, alpha, V, TERMS, GPU)
    return m_new, mass, acc, norm


@triton.jit
def stored_block(
    m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, start, local, length, capacity,
    K_SEM: tl.constexpr, K_GEO: tl.constexpr, V: tl.constexpr, TERMS: tl.constexpr,
    GPU: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The state after tokens start + local [N] as stored. sem, geo, val: see `kernel.store_of`."""
    held = start + local < length
    geo_raw, geo_scales = load_block(geo[0], geo[1], geo[2], start, local, held, capacity, K_GEO, MASKED)
    v_raw, v_scales = load_block(val[0], val[1], val[2], start, local, held, capacity, V, MASKED)
    s = tl.zeros([local.shape[0], m.shape[0]], dtype=tl.float32)
    if K_SEM[2] > 0:
        raw, scales = load_block(sem[0], sem[1], sem[2], start, local, held, capacity, K_SEM, MASKED)
        s = add_scores(s, tiles_of(raw, K_SEM, GPU), scales, q_sem, K_SEM, TERMS[0], GPU)
    s = add_scores(s, tiles_of(geo_raw, K_GEO, GPU), geo_scales, q_geo, K_GEO, TERMS[1], GPU)
    v_tiles = tiles_of(v_raw, V, GPU)
    return advance(m, mass, acc, norm, s, c, held, v_tiles, v_scales, V, TERMS[2], MASKED, GPU)


@triton.jit
def newest(store, slot, start, local, held, capacity, TENSOR: tl.constexpr):
    """Tiles of the newest tokens: from the ring in a block format, as stored in a float format."""
    if TENSOR[3] > 0:
        tiles = load_recent(store[3], slot, held, TENSOR)
    else:
        tiles, _ = load_block(store[0], store[1], store[2], start, local, held, capacity, TENSOR, True)
    return tiles


@triton.jit
def recent_block(
    m, mass, acc, norm, c, q_sem, q_geo, sem, geo, val, start, local, length, capacity, ring_size,
    K_SEM: tl.constexpr, K_GEO: tl.constexpr, V: tl.constexpr, TERMS: tl.constexpr, GPU: tl.constexpr,
):  # fmt: skip
    """The state after tokens start + local [N] of the residual window."""
    held = start + local < length
    slot = (start + local) % ring_size
    s = tl.zeros([local.shape[0], m.shape[0]], dtype=tl.float32)
    if K_SEM[2] > 0:
        tiles = newest(sem, slot, start, local, held, capacity, K_SEM)
        s = add_scores(s, tiles, (), q_sem, K_SEM, TERMS[0], GPU)
    s = add_scores(s, newest(geo, slot, start, local, held, capacity, K_GEO), (), q_geo, K_GEO, TERMS[1], GPU)
    tiles = newest(val, slot, start, local, held, capacity, V)
    return advance(m, mass, acc, norm, s, c, held, tiles, (), V, TERMS[2], True, GPU)
