"""Two 4-bit codes to a byte, split by halves of a head row: byte j = code[j] | code[j + ceil(D/2)] << 4.

So unpacking is two whole halves side by side and no kernel has to interleave. For odd D the last high nibble
is zero and is never read. Called by q4_0 and nf4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_width(head_dim: int) -> int:
    """Bytes for one head of one token."""
    return (head_dim + 1) // 2


def pack(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 [..., D] -> bytes [..., ceil(D/2)]."""
    half = packed_width(codes.shape[-1])
    if codes.shape[-1] < 2 * half:
        codes = F.pad(codes, (0, 1))
    return codes[..., :half] | codes[..., half:] << 4


def unpack(packed: Tensor, head_dim: int) -> Tensor:
    """bytes [..., ceil(D/2)] -> uint8 codes 0..15 [..., D], contiguous."""
    high = (packed >> 4)[..., : head_dim - packed.shape[-1]]
    return torch.cat((packed & 15, high), dim=-1)
