"""Summarize each memory block by its mean plus pooled local features of its tokens:

    residual(x[n]) = (1/L) sum_l silu(sum_j kernel[j] * x[n, l + j - K//2])   per channel, 0 outside the block

The convolution sees both sides: a block is summarized only when all of it lies in the past. Without the silu
it would be the mean again but for the edges. The kernel starts as the average of K neighbours.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.contracts import Reason, SummarizerPlugin, SummarizerRequest, Support
from dba_core.errors import ConfigError
from dba_core.hookspecs import hookimpl
from dba_plugins.summarizers.pooling import known_dtype
from dba_plugins.summarizers.residual import KeyValueSummarizer, MeanPlusResidual


@attrs.frozen(kw_only=True)
class ConvOptions:
    """kernel_size: tokens that one feature sees, odd. shared: all KV heads have the same weights."""

    kernel_size: int = 3
    shared: bool = False

    def __attrs_post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"{self.kernel_size} is not allowed; give an odd number >= 1", path="kernel_size"
            )


class ConvBlockSummary(MeanPlusResidual):
    """kernel [heads, D, K]."""

    def __init__(self, *, heads: int, width: int, kernel_size: int) -> None:
        super().__init__(heads)
        self.kernel = nn.Parameter(torch.full((heads, width, kernel_size), 1.0 / kernel_size))

    def residual(self, blocks: Tensor) -> Tensor:
        batch, kv_heads, n_blocks, mem_block, width = blocks.shape
        channels = kv_heads * width
        rows = blocks.permute(0, 2, 3, 1, 4).reshape(batch * n_blocks, mem_block, channels)
        image = rows.transpose(1, 2).unsqueeze(-1)  # [B*N, G*D, L, 1], channels last: no copy
        kernel = self.kernel.expand(kv_heads, -1, -1).reshape(channels, 1, -1, 1)  # [G*D, 1, K, 1]
        features = F.conv2d(image, kernel, padding=(kernel.shape[2] // 2, 0), groups=channels)
        pooled = F.silu(features).sum(dim=(2, 3)) / mem_block  # [B*N, G*D]
        return pooled.view(batch, n_blocks, kv_heads, width).transpose(1, 2)


class ConvSummarizerPlugin:
    name = "conv"
    contract = 1
    summary = "the mean plus a learned convolution over a block's tokens, pooled"
    options_class = ConvOptions

    def supports(self, request: SummarizerRequest, options: ConvOptions) -> Support:
        reasons = [*known_dtype(request).reasons]
        if options.kernel_size > request.mem_block:
            reasons.append(
                Reason(
                    subject="kernel_size",
                    got=f"{options.kernel_size} for blocks of {request.mem_block} tokens",
                    supported=f"at most mem_block, {request.mem_block}",
                    action="Set a smaller kernel_size or a larger model.train_long_seq.mem_block.",
                )
            )
        return Support(tuple(reasons))

    def build(self, request: SummarizerRequest, options: ConvOptions) -> nn.Module:
        shape = request.shape

        def part(width: int) -> ConvBlockSummary:
            heads = 1 if options.shared else shape.n_kv_heads
            return ConvBlockSummary(heads=heads, width=width, kernel_size=options.kernel_size)

        return KeyValueSummarizer(
            k=part(shape.sem_head_dim) if shape.sem_head_dim else None, v=part(shape.v_head_dim)
        )


@hookimpl
def dba_summarizer() -> SummarizerPlugin:
    return ConvSummarizerPlugin()
