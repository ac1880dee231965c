"""Summarize each memory block by its mean:

    k_mem[n] = (1/L) sum_l k[n, l],    v_mem[n] = (1/L) sum_l v[n, l]

No parameters; the reference that the learned summarizers start from. Called by attention.long_sequence.
"""

from __future__ import annotations

from torch import Tensor, nn

from dba_core.contracts import NoOptions, SummarizerPlugin, SummarizerRequest, Support
from dba_core.hookspecs import hookimpl
from dba_plugins.summarizers.pooling import block_mean, known_dtype


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
