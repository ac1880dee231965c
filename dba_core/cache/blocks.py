"""Block scales: one token's flattened [G*D] row cut into blocks of `qblock` values, one bf16 scale per block.

    block of value (g, d) = (g * D + d) // qblock        scale = round_up_bf16(max|block| / levels)

A block may be a part of a head, a whole head, several heads, or straddle heads; the last one may be short.
u = gcd(D, qblock) consecutive values ("a unit") always lie inside one head and one block, so a head is D/u
units and a block is qblock/u units: everything below works on units. Called by the block formats.

Scales are bf16 and not fp16, which costs the same two bytes: an fp16 scale is zero for values around 1e-6 and
infinite for large ones, and then the block is lost. Rounding up keeps every quotient within the format's
levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: The smallest normal bf16: no scale is below it, so that nothing is divided by zero.
MIN_SCALE = 2.0**-126


class RowLayout:
    """How the blocks of one tensor lie over its heads. `qblock` 0 (float formats) has no blocks."""

    def __init__(self, *, n_heads: int, head_dim: int, qblock: int, device: torch.device) -> None:
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.qblock = qblock
        self.n_blocks = -(-n_heads * head_dim // qblock) if qblock else 0
        self.unit = math.gcd(head_dim, qblock) or 1
        first_value = torch.arange(n_heads * (head_dim // self.unit), device="cpu") * self.unit  # [G*U]
        self._block_of_unit = (first_value // max(qblock, 1)).to(device)

    @property
    def units_per_head(self) -> int:
        return self.head_dim // self.unit

    def cut(self, x: Tensor) -> Tensor:
        """[B,G,T,D] -> [B,G,T,U,u], a view: U units of u values."""
        return x.view(*x.shape[:-1], self.units_per_head, self.unit)

    def block_max(self, x: Tensor) -> Tensor:
        """max|x| of every block: float32 [B,G,T,D] -> [B,n_blocks,T]."""
        units = self.cut(x).abs().amax(-1)  # [B, G, T, U]
        units = units.transpose(2, 3).flatten(1, 2)  # [B, G*U, T]
        per_block = self.qblock // self.unit
        if per_block == 1:
            return units
        missing = self.n_blocks * per_block - units.shape[1]
        whole = F.pad(units, (0, 0, 0, missing))  # [B, n_blocks*per_block, T]
        return whole.view(whole.shape[0], self.n_blocks, per_block, whole.shape[2]).amax(2)

    def per_unit(self, scales: Tensor) -> Tensor:
        """The scale of every unit in float32: [B,n_blocks,T] -> [B,G,T,U,1], to go with `cut` values."""
        if self.qblock != self.unit:
            scales = scales.index_select(1, self._block_of_unit)  # [B, G*U, T]
        batch, _, tokens = scales.shape
        units = scales.float().reshape(batch, self.n_heads, self.units_per_head, tokens)
        return units.transpose(2, 3).contiguous().unsqueeze(-1)  # [B, G, T, U, 1]


def round_up_bf16(scale: Tensor) -> Tensor:
    """The nearest bf16 number that is not smaller: positive float32 -> bf16 of the same shape."""
    bits = scale.clamp_min(MIN_SCALE).view(torch.int32)
    return bits.add(0xFFFF).bitwise_and_(-0x10000).view(torch.float32).to(torch.bfloat16)
