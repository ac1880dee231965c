"""The form of the learned summarizers: the block mean plus a learned residual whose scale starts at 0.

    summary[n] = mean_l x[n, l] + residual_scale * residual(x[n])

So training starts from `mean` exactly. The residual's own weights start at constants other than zero: the
scale has a gradient at step 0, and the weights have one as soon as a step has moved it. Keys and values have
one residual each. Subclassed by the linear and the conv summarizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dba_plugins.summarizers.mean import block_mean


class MeanPlusResidual(nn.Module):
    """Base of one tensor's summary. heads: KV heads with weights of their own; 1 where they share them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.residual_scale = nn.Parameter(torch.zeros(heads))

    def forward(self, blocks: Tensor) -> Tensor:
        """[B, G, N, L, D] -> [B, G, N, D], each block from its own tokens alone."""
        scaled = self.residual_scale.view(-1, 1, 1) * self.residual(blocks)
        return (block_mean(blocks) + scaled).to(blocks.dtype)

    def residual(self, blocks: Tensor) -> Tensor:
        """[B, G, N, L, D] -> [B, G, N, D]."""
        raise NotImplementedError


class KeyValueSummarizer(nn.Module):
    """One summary for keys (None: there is no semantic path, and the width is 0) and one for values."""

    def __init__(self, *, k: MeanPlusResidual | None, v: MeanPlusResidual) -> None:
        super().__init__()
        self.k, self.v = k, v

    def forward(self, k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k_sem [B, G, N, L, Ds], v [B, G, N, L, Dv] -> [B, G, N, Ds], [B, G, N, Dv]."""
        return block_mean(k_sem) if self.k is None else self.k(k_sem), self.v(v)
