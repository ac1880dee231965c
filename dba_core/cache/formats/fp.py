"""fp32, fp16, bf16: values are stored as they are, rounded to the nearest number of the format."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout
from dba_core.cache.formats.codec import Encoded
from dba_core.cache.formats.info import FormatInfo, format_info


@attrs.frozen
class FloatCodec:
    """code = x rounded to `code_dtype`; no scales."""

    info: FormatInfo
    code_dtype: torch.dtype

    def code_width(self, head_dim: int) -> int:
        return head_dim

    def encode(self, x: Tensor, layout: RowLayout) -> Encoded:
        return Encoded(x.to(self.code_dtype), None)

    def decode(self, codes: Tensor, scales: Tensor | None, layout: RowLayout) -> Tensor:
        """The stored numbers themselves, as a view."""
        return codes


FP32 = FloatCodec(format_info("fp32"), torch.float32)
FP16 = FloatCodec(format_info("fp16"), torch.float16)
BF16 = FloatCodec(format_info("bf16"), torch.bfloat16)
