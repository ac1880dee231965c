"""q8_0: scale = max|block| / 127, code = round(x / scale) in -127..127 (int8), x' = code * scale.

The format of that name in ggml (https://github.com/ggml-org/ggml), with bf16 scales rounded up (see
`cache.blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout, round_up_bf16
from dba_core.cache.formats.codec import Encoded
from dba_core.cache.formats.info import format_info

LEVELS = 127


class Q8Codec:
    """One signed byte per value."""

    info = format_info("q8_0")
    code_dtype = torch.int8

    def code_width(self, head_dim: int) -> int:
        return head_dim

    def encode(self, x: Tensor, layout: RowLayout) -> Encoded:
        x = x.float()
        scales = round_up_bf16(layout.block_max(x) / LEVELS)  # [B, n_blocks, T]
        codes = (layout.cut(x) / layout.per_unit(scales)).round_().clamp_(-LEVELS, LEVELS)
        return Encoded(codes.to(torch.int8).flatten(-2), scales)

    def decode(self, codes: Tensor, scales: Tensor | None, layout: RowLayout) -> Tensor:
        assert scales is not None
        values = codes.to(torch.float32, memory_format=torch.contiguous_format)  # [B, G, T, D]
        return layout.cut(values).mul_(layout.per_unit(scales)).flatten(-2)


Q8_0 = Q8Codec()
