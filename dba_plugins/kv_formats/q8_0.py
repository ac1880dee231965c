"""q8_0: scale = max|block| / 127, code = round(x / scale) in -127..127 (int8), x' = code * scale.

The format of that name in ggml (https://github.com/ggml-org/ggml), with bf16 scales rounded up (see
`cache.blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout
from dba_core.contracts import Encoded, KVFormatRequest

LEVELS = 127


class Q8Codec:
    """One signed byte per value."""

    def __init__(self, request: KVFormatRequest) -> None:
        self._layout = RowLayout.of(request)

    def encode(self, x: Tensor) -> Encoded:
        layout, x = self._layout, x.float()
        scales = layout.scales(x, levels=LEVELS)  # [B, n_blocks, T]
        codes = (layout.cut(x) / layout.per_unit(scales)).round_().clamp_(-LEVELS, LEVELS)
        return Encoded(codes.to(torch.int8).flatten(-2), scales)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        layout = self._layout
        values = codes.to(torch.float32, memory_format=torch.contiguous_format)  # [B, G, T, D]
        return layout.cut(values).mul_(layout.per_unit(scales)).flatten(-2)
