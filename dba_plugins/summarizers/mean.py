"""Summarize each memory block by its mean:

    k_mem[n] = (1/L) sum_l k[n, l],    v_mem[n] = (1/L) sum_l v[n, l]

No parameters; the reference that the learned summarizers start from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dba_core.contracts import NoOptions, SummarizerPlugin, SummarizerRequest, Support
from dba_core.hookspecs import hookimpl
from dba_plugins.summarizers.pooling import known_dtype


def block_mean(blocks: Tensor) -> Tensor:
    """[B, G, N, L, D] -> [B, G, N, D], summed in float32 (float64 for float64) and rounded once.

    A sum and one division of the small result: `Tensor.mean` divides the whole expanded gradient in backward.
    """
    dtype = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    return (blocks.sum(dim=3, dtype=dtype) / blocks.shape[3]).to(blocks.dtype)


class MeanSummarizer(nn.Module):
    """Every token of a block counts the same."""

    def forward(self, k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k_sem [B, G, N, L, Ds], v [B, G, N, L, Dv] -> [B, G, N, Ds], [B, G, N, Dv]."""
        return block_mean(k_sem), block_mean(v)


class MeanSummarizerPlugin:
    name = "mean"
    contract = 1
    summary = "the mean of a block's keys and values; no parameters"
    options_class = NoOptions

    def supports(self, request: SummarizerRequest, options: NoOptions) -> Support:
        return known_dtype(request)

    def build(self, request: SummarizerRequest, options: NoOptions) -> nn.Module:
        return MeanSummarizer()


@hookimpl
def dba_summarizer() -> SummarizerPlugin:
    return MeanSummarizerPlugin()
