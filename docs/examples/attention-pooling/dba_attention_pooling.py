"""Summarize each memory block by attention with a learned query:

    w[n, l] = softmax_l(q . k[n, l] / sqrt(Ds))
    k_mem[n] = sum_l w[n, l] k[n, l],    v_mem[n] = sum_l w[n, l] v[n, l]

One query per KV head, from the semantic keys alone: a memory token then stands for the tokens of its block
that are worth finding again, not for all of them alike. The query starts at 0, where the summary is the
block's mean. This is the pooling of "Set Transformer" (Lee et al. 2019, arXiv:1810.00825, section 3.2) with
one seed and without projections.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from dba_core import hookimpl
from dba_core.contracts import Reason, SummarizerPlugin, SummarizerRequest, Support
from dba_core.errors import ConfigError


@attrs.frozen(kw_only=True)
class AttentionPoolingOptions:
    """temperature: what the scores are divided by, larger than 0; small ones pick single tokens."""

    temperature: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ConfigError(
                f"{self.temperature} is out of range; allowed: temperature > 0", path="temperature"
            )


class AttentionPooling(nn.Module):
    """One learned query of width Ds per KV head; keys and values share the weights it gives."""

    def __init__(self, *, n_kv_heads: int, sem_head_dim: int, temperature: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(n_kv_heads, sem_head_dim))
        self.scale = 1.0 / (temperature * sem_head_dim**0.5)

    def forward(self, k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k_sem [B, G, N, L, Ds], v [B, G, N, L, Dv] -> [B, G, N, Ds], [B, G, N, Dv]."""
        query = (self.query * self.scale).to(k_sem.dtype)
        scores = k_sem @ query[:, None, :, None]  # [B, G, N, L, 1]
        weights = scores.softmax(dim=3).mT  # [B, G, N, 1, L]
        return (weights @ k_sem).squeeze(3), (weights @ v).squeeze(3)


class AttentionPoolingPlugin:
    name = "attention-pooling"
    contract = 1
    summary = "a learned query pools each block's keys and values"
    options_class = AttentionPoolingOptions

    def supports(self, request: SummarizerRequest, options: AttentionPoolingOptions) -> Support:
        if request.shape.sem_head_dim:
            return Support.yes()
        return Support.no(
            Reason(
                subject="sem_head_dim",
                got="0 (this layout has no semantic keys to attend to)",
                supported="1 or more",
                action="Choose model.attention.mode=decoupled, or summarizer=mean.",
            )
        )

    def build(self, request: SummarizerRequest, options: AttentionPoolingOptions) -> nn.Module:
        return AttentionPooling(
            n_kv_heads=request.shape.n_kv_heads,
            sem_head_dim=request.shape.sem_head_dim,
            temperature=options.temperature,
        )


@hookimpl
def dba_summarizer() -> SummarizerPlugin:
    return AttentionPoolingPlugin()
