"""Quantizing append: one launch per cached tensor stores new tokens, bit for bit as the torch codecs do.

    scale = round_up_bf16(max|block| / levels)      code = round_half_even(x / scale), or nearest nf4 level

One program per token and KV head. It reads every block that touches its head, so that blocks may straddle
heads, and stores the scales of the blocks that begin in its head. Positions come from the lengths on the
device: nothing waits for it, and a CUDA graph can hold the launch.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from dba_core.cache.formats.nf4 import NF4_LEVELS
from dba_core.contracts import KVLayer, KVTensor
from dba_core.errors import CacheError

#: Halfway between neighbouring levels; a value exactly there takes the lower one.
_MIDPOINTS = tuple((low + high) / 2 for low, high in pairwise(NF4_LEVELS))
_ROUND = (
    1.5 * 2.0**23
)  # adding and subtracting it rounds |x| < 2^22 to the nearest whole number, half to even
MIDPOINTS = tl.constexpr(_MIDPOINTS)
ROUND = tl.constexpr(_ROUND)
MIN_SCALE = tl.constexpr(2.0**-126)
INPUTS = (torch.float32, torch.float16, torch.bfloat16)

#: Arguments that Triton must not specialize on, so that one compilation serves every size.
RUNTIME = ("stride_b", "stride_g", "stride_t", "tokens", "capacity", "ring_size")


@triton.jit
def _codes(x, scale, FORMAT: tl.constexpr):
    """x, scale float32 of one shape -> codes 0..15, or -127..127 for q8_0, as int32."""
    y = tl.div_rn(x, scale)
    if FORMAT == "nf4":
        code = tl.zeros(x.shape, dtype=tl.int32)
        for i in tl.static_range(15):
            code += (y > MIDPOINTS[i]).to(tl.int32)
    else:
        low: tl.constexpr = -127.0 if FORMAT == "q8_0" else -8.0
        high: tl.constexpr = 127.0 if FORMAT == "q8_0" else 7.0
        whole = tl.minimum(tl.maximum((y + ROUND) - ROUND, low), high)
        code = whole.to(tl.int32)
        if FORMAT == "q4_0":
            code += 8
    return code


@triton.jit
def _block_scales(
    row_ptr,
    blocks,
    stride_g,
    ROW: tl.constexpr,
    D: tl.constexpr,
    QBLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """The scales, float32 with the bits of bf16, of some blocks [NB] of one token's flattened row."""
    value = blocks[:, None] * QBLOCK + tl.arange(0, QBLOCK)[None, :]  # [NB, QBLOCK]
    offset = (value // D).to(tl.int64) * stride_g + value % D
    x = tl.load(row_ptr + offset, mask=value < ROW, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), axis=1)
    levels: tl.constexpr = 127.0 if FORMAT == "q8_0" else 7.0
    if FORMAT != "nf4":
        largest = tl.div_rn(largest, tl.full(largest.shape, levels, tl.float32))
    bits = tl.maximum(largest, MIN_SCALE).to(tl.int32, bitcast=True)
    return ((bits + 0xFFFF) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _per_value(scales, blocks, d, head, D: tl.constexpr, QBLOCK: tl.constexpr):
    """The scale of each value d of a head, picked from the scales of blocks [NB]."""
    own = ((head * D + d) // QBLOCK)[:, None] == blocks[None, :]
    return tl.sum(tl.where(own, scales[None, :], 0.0), axis=1)


@triton.jit
def _bf16_bits(x):
    """float32 rounded to the nearest bf16, half to even, as int16; the interpreter's own cast truncates."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)


@triton.jit(do_not_specialize=RUNTIME)
def append_kernel(
    x_ptr,  # [B,G,T,D], unit stride over D
    codes_ptr,  # [B,G,capacity,C], bf16 as int16
    scales_ptr,  # [B,n_blocks,capacity] as int16, block formats
    ring_ptr,  # [B,G,ring_size,D] fp16, where there is a ring
    lengths_ptr,  # [B] int32
    bad_ptr,  # [1] int32
    stride_b,
    stride_g,
    stride_t,
    tokens,
    capacity,
    ring_size,
    FORMAT: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    QBLOCK: tl.constexpr,
    HAS_RING: tl.constexpr,
    MAX_INPUT: tl.constexpr,
    WIDTH: tl.constexpr,  # values of a half row (4 bits) or a row, padded to a power of two
    NB: tl.constexpr,  # blocks that touch one head, padded to a power of two
):
    head = tl.program_id(1)
    b, t = (tl.program_id(0) // tokens).to(tl.int64), tl.program_id(0) % tokens
    position = tl.load(lengths_ptr + b) + t
    fits = position < capacity
    row_ptr = x_ptr + b * stride_b + t.to(tl.int64) * stride_t
    x_head = row_ptr + head.to(tl.int64) * stride_g
    plane = b * G + head
    half: tl.constexpr = (D + 1) // 2 if FORMAT == "q4_0" or FORMAT == "nf4" else D
    low = tl.arange(0, WIDTH)
    x_low = tl.load(x_head + low, mask=low < half, other=0.0)
    out = codes_ptr + (plane * capacity + position) * half + low
    store_low = (low < half) & fits
    good = tl.min((tl.abs(x_low.to(tl.float32)) <= MAX_INPUT).to(tl.int32), axis=0)
    if HAS_RING:
        ring = ring_ptr + (plane * ring_size + position % ring_size) * D
        newest = fits & (t + ring_size >= tokens)
        tl.store(ring + low, x_low.to(tl.float16), mask=(low < half) & newest)
    if QBLOCK == 0:
        if FORMAT == "bf16":
            tl.store(out, _bf16_bits(x_low.to(tl.float32)), mask=store_low)
        else:
            tl.store(out, x_low.to(codes_ptr.dtype.element_ty), mask=store_low)
    else:
        blocks = head * D // QBLOCK + tl.arange(0, NB)
        scales = _block_scales(row_ptr, blocks, stride_g, G * D, D, QBLOCK, FORMAT)
        code = _codes(x_low.to(tl.float32), _known(_per_value(scales, blocks, low, head, D, QBLOCK)), FORMAT)
        if half < D:
            high = half + low
            x_high = tl.load(x_head + high, mask=high < D, other=0.0)
            good = tl.minimum(good, tl.min((tl.abs(x_high.to(tl.float32)) <= MAX_INPUT).to(tl.int32), axis=0))
            scale_high = _known(_per_value(scales, blocks, high, head, D, QBLOCK))
            code_high = _codes(x_high.to(tl.float32), scale_high, FORMAT)
            code |= tl.where(high < D, code_high, 0) << 4
            if HAS_RING:
                tl.store(ring + high, x_high.to(tl.float16), mask=(high < D) & newest)
        tl.store(out, code.to(codes_ptr.dtype.element_ty), mask=store_low)
        first = blocks * QBLOCK
        mine = (first >= head * D) & (first < (head + 1) * D) & fits
        n_blocks: tl.constexpr = (G * D + QBLOCK - 1) // QBLOCK
        at = (b * n_blocks + blocks) * capacity + position
        tl.store(scales_ptr + at, (scales.to(tl.int32, bitcast=True) >> 16).to(tl.int16), mask=mine)
    tl.store(bad_ptr, 1, mask=good == 0)


@triton.jit
def _known(scale):
    """Lanes past the head have no block: any scale but 0 does, nothing of them is stored."""
    return tl.maximum(scale, MIN_SCALE)


class TritonWriter:
    """Stores tokens in one launch per tensor. Finds bad values on the device and flags them there."""

    def write(self, cache: KVLayer, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> bool:
        """See `TokenWriter.write`. Always True: `cache.check_values()` tells of a bad value.

        Inputs are float32, float16 or bfloat16. Raises CacheError for another dtype, and where a CUDA graph
        captures the first append of a cache, whose flag would then be cleared by every replay.
        """
        inputs = (k_sem, k_geo, v)
        for x in inputs:
            if x.dtype not in INPUTS:
                raise CacheError(
                    f"layer {cache.layer}: the Triton writer got {x.dtype}; it takes float32, float16 and "
                    "bfloat16. Convert the keys and values, or append without a writer"
                )
        if cache.bad_values is None:
            if cache.capturing:
                raise CacheError(
                    f"layer {cache.layer}: the first append of a cache cannot be captured in a CUDA graph; "
                    "append once before the capture, and truncate() if those tokens are not wanted"
                )
            cache.bad_values = torch.zeros(1, dtype=torch.int32, device=k_sem.device)
        for store, x in zip((cache.k_sem, cache.k_geo, cache.v), inputs, strict=True):
            if store.head_dim:
                _launch(store, x, cache.lengths_device, cache.bad_values)
        return True


def _launch(store: KVTensor, x: Tensor, lengths: Tensor, bad_values: Tensor) -> None:
    """Store x [B,G,T,D] at the lengths."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, tokens, _ = x.shape
    ring = store.recent_ring
    append_kernel[(batch * tokens, heads)](
        x,
        store.codes.view(torch.int16) if store.format == "bf16" else store.codes,
        store.codes if store.scales is None else store.scales.view(torch.int16),
        store.codes if ring is None else ring,
        lengths,
        bad_values,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        tokens,
        store.capacity,
        1 if ring is None else ring.shape[2],
        **constants(store),
        num_warps=1,
    )


def constants(store: KVTensor) -> dict[str, object]:
    """The compile-time constants of a store: format and sizes of a head, nothing of length or capacity."""
    width, qblock = store.head_dim, store.qblock if store.quantized else 0
    unit = math.gcd(width, qblock)
    packed = store.format in ("q4_0", "nf4")
    return {
        "FORMAT": store.format,
        "G": store.n_heads,
        "D": width,
        "QBLOCK": qblock,
        "HAS_RING": store.recent_ring is not None,
        "MAX_INPUT": store.max_input,
        "WIDTH": triton.next_power_of_2((width + 1) // 2 if packed else width),
        "NB": triton.next_power_of_2((qblock - unit + width - 1) // qblock + 1) if qblock else 1,
    }
