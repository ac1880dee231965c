"""The cache formats once more, in plain numpy and loops over blocks, sharing nothing with dba_core.

Quotients are float32 as the formats say; everything else is float64 or Python integers.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

#: Largest error of one value as a share of its block's maximum: half a step, the scale rounded up by 2^-7.
BOUND = {"q8_0": 0.5 / 127 * 1.008, "q4_0": 0.5 / 7 * 1.008, "nf4": 0.15195 * 1.008}


def nf4_levels() -> np.ndarray:
    """NormalFloat4 as constructed: 8 positive, 7 negative quantiles of N(0,1) and zero, divided by the last.

    QLoRA, arXiv:2305.14314, section 3; the offset is the one of its published code.
    """
    offset = 0.9677083
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.array(sorted([*positive, 0.0, *negative]))
    return levels / levels.max()


def bf16_up(value: float) -> float:
    """The smallest number of 8 significant bits that is not below value, at least 2^-126."""
    if value <= 2.0**-126:
        return 2.0**-126
    mantissa, exponent = math.frexp(value)
    return math.ceil(mantissa * 256) / 256 * 2.0**exponent


def quantize(x: np.ndarray, fmt: str, qblock: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [B,G,T,D] -> codes [B,G,T,D] (0..15, or -127..127), scales [B,n_blocks,T], values [B,G,T,D]."""
    batch, heads, tokens, width = x.shape
    n_blocks = math.ceil(heads * width / qblock)
    codes = np.zeros(x.shape, dtype=np.int64)
    scales = np.zeros((batch, n_blocks, tokens))
    values = np.zeros(x.shape)
    levels = nf4_levels().astype(np.float32)
    for b in range(batch):
        for t in range(tokens):
            row = x[b, :, t].reshape(-1).astype(np.float32)
            for block in range(n_blocks):
                where = range(block * qblock, min((block + 1) * qblock, row.size))
                part = row[list(where)]
                divisor = np.float32({"q8_0": 127, "q4_0": 7, "nf4": 1}[fmt])
                scale = bf16_up(float(np.abs(part).max() / divisor))
                scales[b, block, t] = scale
                for flat, quotient in zip(where, part / np.float32(scale), strict=True):
                    g, d = divmod(flat, width)
                    if fmt == "nf4":
                        code = int(np.argmin(np.abs(levels.astype(np.float64) - float(quotient))))
                        value = float(np.float32(levels[code]) * np.float32(scale))
                    else:
                        low, high = (-127, 127) if fmt == "q8_0" else (-8, 7)
                        signed = min(max(int(np.rint(quotient)), low), high)
                        code = signed + (8 if fmt == "q4_0" else 0)
                        value = signed * scale
                    codes[b, g, t, d], values[b, g, t, d] = code, value
    return codes, scales, values


def pack_halves(codes: np.ndarray) -> np.ndarray:
    """Codes 0..15 [...,D] -> bytes: byte j holds code j low and code j + ceil(D/2) high."""
    half = math.ceil(codes.shape[-1] / 2)
    packed = np.zeros((*codes.shape[:-1], half), dtype=np.uint8)
    for j in range(half):
        packed[..., j] = codes[..., j]
        if j + half < codes.shape[-1]:
            packed[..., j] += (codes[..., j + half] * 16).astype(np.uint8)
    return packed


def block_bound(x: np.ndarray, fmt: str, qblock: int) -> np.ndarray:
    """The largest error that each value of x [G,D] (one token) may have."""
    row = np.abs(x.reshape(-1))
    largest = np.array(
        [row[i // qblock * qblock : (i // qblock + 1) * qblock].max() for i in range(row.size)]
    )
    return (largest * BOUND[fmt]).reshape(x.shape) + 2.0**-126
