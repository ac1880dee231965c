"""Where a program's state (m, mass, acc, norm) comes from, and where it goes.

It begins empty, as the null token (m = s_null, mass = 1, acc = v_null), or as an earlier launch left it; it
ends as the output, or in memory for the next launch. Called by `kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dba_plugins.decode.triton.attend import LEAST_NORM, LOWEST
from dba_plugins.decode.triton.tile import value_index

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def empty_state(ROWS: tl.constexpr, V: tl.constexpr, TILES: tl.constexpr):
    """m, mass [R], acc (a tuple of tiles [P,R]) and norm before any token."""
    m = tl.full([ROWS], LOWEST, tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    norm = tl.full([], LEAST_NORM, tl.float32) if V[3] > 0 else tl.full([], 1.0, tl.float32)
    acc = ()
    for i in tl.static_range(TILES):
        acc = acc + (tl.zeros([value_index(i, V).shape[0], ROWS], tl.float32),)
    return m, mass, acc, norm


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
def load_tiles(at, known, V: tl.constexpr, TILES: tl.constexpr):
    """Values [Dv] at the addresses `at` [R], float32, as the tiles of acc hold them."""
    tiles = ()
    for i in tl.static_range(TILES):
        value = value_index(i, V)
        ok = (value < V[2])[:, None] & known[None, :]
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
def null_state(
    q_sem_row, q_geo_row, sem_ptr, geo_ptr, v_ptr, head, known, down,
    K_SEM: tl.constexpr, K_GEO: tl.constexpr, V: tl.constexpr, TILES: tl.constexpr, NULL_HEADS: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """The state after the null token alone."""
    s = null_score(q_geo_row, geo_ptr, head, known, head * NULL_HEADS[1] // H, K_GEO[2])
    if K_SEM[2] > 0:
        s += null_score(q_sem_row, sem_ptr, head, known, head * NULL_HEADS[0] // H, K_SEM[2])
    values = load_tiles(v_ptr + head * NULL_HEADS[2] // H * V[2], known, V, TILES)
    acc, norm = normed(values, V[3])
    return s * down, tl.full([head.shape[0]], 1.0, tl.float32), acc, norm


@triton.jit
def load_state(state, c, known, V: tl.constexpr, TILES: tl.constexpr):
    """The state that an earlier launch left at `state` [R]."""
    mass = tl.load(state + V[2] + 1, mask=known, other=0.0)
    m = tl.where(mass > 0, tl.load(state + V[2], mask=known, other=0.0) / c, LOWEST)
    acc, norm = normed(load_tiles(state, known, V, TILES), V[3])
    return m, mass, acc, norm


@triton.jit
def store_state(state, m, mass, acc, norm, c, known, V: tl.constexpr):
    """acc, m in units of log 2, and mass of the heads whose states begin at `state` [R]."""
    for i in tl.static_range(len(acc)):
        value = value_index(i, V)
        ok = (value < V[2])[:, None] & known[None, :]
        tl.store(state[None, :] + value[:, None], acc[i] * norm, mask=ok)
    tl.store(state + V[2], tl.where(mass > 0, m * c, LOWEST), mask=known)
    tl.store(state + V[2] + 1, mass, mask=known)


@triton.jit
def store_output(out, lse, m, mass, acc, norm, c, known, V: tl.constexpr, HAS_LSE: tl.constexpr):
    """acc / mass to the addresses `out` [R], the log-sum-exp to `lse` [R]; nothing seen gives 0 and -inf."""
    seen = mass > 0
    total = tl.where(seen, mass, 1.0)
    for i in tl.static_range(len(acc)):
        value = value_index(i, V)
        ok = (value < V[2])[:, None] & known[None, :]
        x = (acc[i] * (norm / total)[None, :]).to(out.dtype.element_ty)
        tl.store(out[None, :] + value[:, None], x, mask=ok)
    if HAS_LSE:
        tl.store(lse, tl.where(seen, (m * c + tl.log2(total)) * LN_2, float("-inf")), mask=known)
