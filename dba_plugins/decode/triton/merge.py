"""The second launch of two passes: the states of all splits, and the null token as one more partition.

    M = max(max_p m_p, s_null)        weight_p = 2^(m_p - M)        m and s_null in units of log 2
    out = (sum_p acc_p weight_p + v_null 2^(s_null - M)) / (sum_p mass_p weight_p + 2^(s_null - M))

Called by `launch`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dba_plugins.decode.triton.attend import LOWEST
from dba_plugins.decode.triton.state import LN_2, LOG2_E


@triton.jit(do_not_specialize=("splits",))
def merge_kernel(
    state_ptr,  # [B,H,S,Dv+2] float32
    q_sem_ptr,
    q_geo_ptr,
    null_sem_ptr,
    null_geo_ptr,
    null_v_ptr,
    out_ptr,
    lse_ptr,
    splits,
    D_SEM: tl.constexpr,
    D_GEO: tl.constexpr,
    D_V: tl.constexpr,
    NULL_HEADS: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # splits that are read at a time
    HAS_NULL: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One program per query head and row."""
    h, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = triton.next_power_of_2(D_V)
    value = tl.arange(0, WIDTH)
    state = state_ptr + (b * H + h) * splits * (D_V + 2)
    m = LOWEST
    mass = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    if HAS_NULL:
        s = _dot(q_geo_ptr + (b * H + h) * D_GEO, null_geo_ptr + h * NULL_HEADS[1] // H * D_GEO, D_GEO)
        if D_SEM > 0:
            s += _dot(q_sem_ptr + (b * H + h) * D_SEM, null_sem_ptr + h * NULL_HEADS[0] // H * D_SEM, D_SEM)
        m = s * LOG2_E
        mass = 1.0
        acc = tl.load(null_v_ptr + h * NULL_HEADS[2] // H * D_V + value, mask=value < D_V, other=0.0)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        there = split < splits
        at = state + split * (D_V + 2)
        m_split = tl.load(at + D_V, mask=there, other=LOWEST)
        mass_split = tl.load(at + D_V + 1, mask=there, other=0.0)
        part = tl.load(at[:, None] + value[None, :], mask=there[:, None] & (value < D_V)[None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(m_split, axis=0))
        weight = tl.where(mass_split > 0, tl.exp2(m_split - m_new), 0.0)
        keep = tl.exp2(m - m_new)
        mass = mass * keep + tl.sum(mass_split * weight, axis=0)
        acc = acc * keep + tl.sum(part * weight[:, None], axis=0)
        m = m_new
    seen = mass > 0
    total = tl.where(seen, mass, 1.0)
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (b * H + h) * D_V + value, out, mask=value < D_V)
    if HAS_LSE:
        tl.store(lse_ptr + b * H + h, tl.where(seen, (m + tl.log2(total)) * LN_2, float("-inf")))


@triton.jit
def _dot(x_ptr, y_ptr, D: tl.constexpr):
    """x . y of D values, float32."""
    value = tl.arange(0, triton.next_power_of_2(D))
    x = tl.load(x_ptr + value, mask=value < D, other=0.0).to(tl.float32)
    return tl.sum(x * tl.load(y_ptr + value, mask=value < D, other=0.0), axis=0)
