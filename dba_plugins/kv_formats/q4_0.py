"""q4_0: scale = max|block| / 7, code = round(x / scale) in -8..7, stored plus 8, x' = code * scale.

Symmetric around zero, unlike ggml's format of that name whose scale is signed: the figures of the system that
this library succeeds hold. bf16 scales rounded up and nibbles by half rows (see `cache.blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout, pack_nibbles, unpack_nibbles
from dba_core.contracts import Encoded, KVFormatRequest

LEVELS = 7
ZERO_CODE = 8


class Q4Codec:
    """Half a byte per value."""

    def __init__(self, request: KVFormatRequest) -> None:
        self._layout = RowLayout.of(request)

    def encode(self, x: Tensor) -> Encoded:
        layout, x = self._layout, x.float()
        scales = layout.scales(x, levels=LEVELS)  # [B, n_blocks, T]
        codes = (layout.cut(x) / layout.per_unit(scales)).round_().clamp_(-LEVELS - 1, LEVELS)
        return Encoded(pack_nibbles(codes.add_(ZERO_CODE).to(torch.uint8).flatten(-2)), scales)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        layout = self._layout
        signed = unpack_nibbles(codes, layout.head_dim).sub_(ZERO_CODE).view(torch.int8)  # [B, G, T, D]
        return layout.cut(signed.float()).mul_(layout.per_unit(scales)).flatten(-2)
