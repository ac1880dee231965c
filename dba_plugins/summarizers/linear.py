"""Summarize each memory block by its mean plus a linear map of its tokens:

    residual(x[n]) = (sum_l position[l] * x[n, l]) @ channel

`position` weighs the L places of a block: at first late minus early, which the mean cannot see. `channel`
mixes the channels of a head and may turn and stretch the summary; at first the identity.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import Reason, SummarizerPlugin, SummarizerRequest, Support
from dba_core.hookspecs import hookimpl
from dba_plugins.summarizers.pooling import known_dtype
from dba_plugins.summarizers.residual import KeyValueSummarizer, MeanPlusResidual


@attrs.frozen(kw_only=True)
class LinearOptions:
    """shared: all KV heads have the same weights. channel_map: the residual mixes the channels of a head."""

    shared: bool = False
    channel_map: bool = True


class LinearBlockSummary(MeanPlusResidual):
    """position [heads, L], channel [heads, D, D] (absent without channel_map)."""

    channel: nn.Parameter | None

    def __init__(self, *, heads: int, mem_block: int, width: int, channel_map: bool) -> None:
        super().__init__(heads)
        ramp = (2 * torch.arange(mem_block, dtype=torch.float32) + 1 - mem_block) / mem_block**2
        self.position = nn.Parameter(ramp.repeat(heads, 1))
        channel = nn.Parameter(torch.eye(width).repeat(heads, 1, 1)) if channel_map else None
        self.register_parameter("channel", channel)

    def residual(self, blocks: Tensor) -> Tensor:
        kv_heads = blocks.shape[1]
        position = self.position.expand(kv_heads, -1)
        weighted = torch.einsum("bgnld,gl->bgnd", blocks, position)
        if self.channel is None:
            return weighted
        return torch.einsum("bgnd,gde->bgne", weighted, self.channel.expand(kv_heads, -1, -1))


class LinearSummarizerPlugin:
    name = "linear"
    contract = 1
    summary = "the mean plus a learned weighting of a block's positions and channels"
    options_class = LinearOptions

    def supports(self, request: SummarizerRequest, options: LinearOptions) -> Support:
        reasons = [*known_dtype(request).reasons]
        if request.mem_block < 2:
            reasons.append(
                Reason(
                    subject="mem_block",
                    got=f"{request.mem_block} (a block of one token has no positions to weigh)",
                    supported="2 or more",
                    action="Set a larger model.train_long_seq.mem_block or choose summarizer=mean.",
                )
            )
        return Support(tuple(reasons))

    def build(self, request: SummarizerRequest, options: LinearOptions) -> nn.Module:
        shape = request.shape

        def part(width: int) -> LinearBlockSummary:
            return LinearBlockSummary(
                heads=1 if options.shared else shape.n_kv_heads,
                mem_block=request.mem_block,
                width=width,
                channel_map=options.channel_map,
            )

        return KeyValueSummarizer(
            k=part(shape.sem_head_dim) if shape.sem_head_dim else None, v=part(shape.v_head_dim)
        )


@hookimpl
def dba_summarizer() -> SummarizerPlugin:
    return LinearSummarizerPlugin()
