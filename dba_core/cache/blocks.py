"""Block scales: one token's flattened [G*D] row cut into blocks of `qblock` values, one bf16 scale per block.

    block of value (g, d) = (g * D + d) // qblock        scale = round_up_bf16(max|block| / levels)

A block may be a part of a head, a whole head, several heads, or straddle heads; the last one may be short.
u = gcd(D, qblock) consecutive values ("a unit") always lie inside one head and one block, so a head is D/u
units and a block is qblock/u units: everything below works on units.

Scales are bf16 and not fp16, which costs the same two bytes: an fp16 scale is zero for values around 1e-6 and
infinite for large ones, and then the block is lost. Rounding up keeps every quotient within the format's
levels.

Two 4-bit codes share a byte, split by halves of a head row: byte j = code[j] | code[j + ceil(D/2)] << 4. So
unpacking is two whole halves side by side and no kernel has to interleave. For odd D the last high nibble is
zero and is never read.

Public to plugins: the formats of other distributions lay out their blocks as these do. It is in this room,
and not on the ground floor, because it needs torch and says how the planes of the cache lie.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.contracts import KVFormatRequest

#: The smallest normal bf16: no scale is below it, so that nothing is divided by zero.
MIN_SCALE = 2.0**-126


class RowLayout:
    """How the blocks of one tensor of `n_heads` heads of `head_dim` values lie over its heads."""

    def __init__(self, *, n_heads: int, head_dim: int, qblock: int, device: torch.device) -> None:
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.qblock = qblock
        self.n_blocks = -(-n_heads * head_dim // qblock)
        self.unit = math.gcd(head_dim, qblock)
        first_value = torch.arange(n_heads * (head_dim // self.unit), device="cpu") * self.unit  # [G*U]
        self._block_of_unit = (first_value // qblock).to(device)

    @classmethod
    def of(cls, request: KVFormatRequest) -> RowLayout:
        """That of the tensor whose codec is asked for."""
        return cls(
            n_heads=request.n_heads,
            head_dim=request.head_dim,
            qblock=request.qblock,
            device=torch.device(request.device),
        )

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

    def scales(self, x: Tensor, *, levels: int) -> Tensor:
        """The bf16 scale of every block, max|x| / levels rounded up: float32 [B,G,T,D] -> [B,n_blocks,T]."""
        return round_up_bf16(self.block_max(x) / levels)

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


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 [..., D] -> bytes [..., ceil(D/2)]."""
    half = (codes.shape[-1] + 1) // 2
    if codes.shape[-1] < 2 * half:
        codes = F.pad(codes, (0, 1))
    return codes[..., :half] | codes[..., half:] << 4


def unpack_nibbles(packed: Tensor, head_dim: int) -> Tensor:
    """bytes [..., ceil(D/2)] -> uint8 codes 0..15 [..., D], contiguous."""
    high = (packed >> 4)[..., : head_dim - packed.shape[-1]]
    return torch.cat((packed & 15, high), dim=-1)
