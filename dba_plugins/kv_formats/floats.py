"""fp32, fp16, bf16: values are stored as they are, rounded to the nearest number of the format."""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.contracts import Encoded

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FloatCodec:
    """code = x rounded to `dtype`; no scales."""

    def __init__(self, dtype: str) -> None:
        self._dtype = _DTYPES[dtype]

    def encode(self, x: Tensor) -> Encoded:
        return Encoded(x.to(self._dtype), None)

    def decode(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """The stored numbers themselves, as a view."""
        return codes
