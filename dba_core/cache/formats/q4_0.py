"""q4_0: scale = max|block| / 7, code = round(x / scale) in -8..7, stored plus 8, x' = code * scale.

Symmetric around zero, unlike ggml's format of that name whose scale is signed: the figures of the system that
this library succeeds hold. bf16 scales rounded up (see `cache.blocks`), nibbles by half rows (see `nibbles`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout, round_up_bf16
from dba_core.cache.formats.codec import Encoded
from dba_core.cache.formats.info import format_info
from dba_core.cache.formats.nibbles import pack, packed_width, unpack

LEVELS = 7
ZERO_CODE = 8


class Q4Codec:
    """Half a byte per value."""

    info = format_info("q4_0")
    code_dtype = torch.uint8

    def code_width(self, head_dim: int) -> int:
        return packed_width(head_dim)

    def encode(self, x: Tensor, layout: RowLayout) -> Encoded:
        x = x.float()
        scales = round_up_bf16(layout.block_max(x) / LEVELS)  # [B, n_blocks, T]
        codes = (layout.cut(x) / layout.per_unit(scales)).round_().clamp_(-LEVELS - 1, LEVELS)
        return Encoded(pack(codes.add_(ZERO_CODE).to(torch.uint8).flatten(-2)), scales)

    def decode(self, codes: Tensor, scales: Tensor | None, layout: RowLayout) -> Tensor:
        assert scales is not None
        signed = unpack(codes, layout.head_dim).sub_(ZERO_CODE).view(torch.int8)  # [B, G, T, D]
        return layout.cut(signed.float()).mul_(layout.per_unit(scales)).flatten(-2)


Q4_0 = Q4Codec()
