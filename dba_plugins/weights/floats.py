"""Weights as floats, fp32 and bf16: every value as it is, or rounded to 8 significant bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_plugins.weights.packed import VECTOR, Packed


class FloatWeight(Packed):
    """A weight [N,K] of floats. What is computed with it is float32."""

    @classmethod
    def pack(cls, weight: Tensor, *, dtype: torch.dtype) -> FloatWeight:
        """weight [N,K] float; dtype float32 or bfloat16. Memory is shared where nothing has to change."""
        values = weight.detach().to(dtype)
        missing = -len(values) % VECTOR
        if missing:
            values = F.pad(values, (0, 0, 0, missing))
        return cls(values.contiguous(), shape=(weight.shape[0], weight.shape[1]), bits=8 * values.itemsize)

    def rows(self, index: Tensor) -> Tensor:
        """index [...] -> [...,K] float32."""
        return F.embedding(index, self._planes[0]).float()

    def dense(self) -> Tensor:
        """[N,K] float32; of fp32 the memory that it lies in."""
        return self._planes[0][: self.shape[0]].float()
