"""What a cache format's codec does: values of one or more tokens <-> codes and block scales.

Implemented by fp, q8_0, q4_0 and nf4, listed in `table`, called by `cache.store` alone.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import torch
from torch import Tensor

from dba_core.cache.blocks import RowLayout
from dba_core.cache.formats.info import FormatInfo


@attrs.frozen(eq=False)
class Encoded:
    """Codes [B,G,T,C] and, for block formats, bf16 scales [B,n_blocks,T]."""

    codes: Tensor
    scales: Tensor | None


class Codec(Protocol):
    """One format. Encoding is elementwise within a block, so it does not depend on how tokens are batched."""

    @property
    def info(self) -> FormatInfo: ...

    @property
    def code_dtype(self) -> torch.dtype: ...

    def code_width(self, head_dim: int) -> int:
        """C: elements of `code_dtype` that hold one head of one token."""
        ...

    def encode(self, x: Tensor, layout: RowLayout) -> Encoded:
        """x [B,G,T,D], any float dtype, finite and at most `info.max_input` in size."""
        ...

    def decode(self, codes: Tensor, scales: Tensor | None, layout: RowLayout) -> Tensor:
        """codes [B,G,T,C], scales [B,n_blocks,T] -> values [B,G,T,D]; float32 for block formats."""
        ...
