"""A learned null token: one key/value per KV head that every query sees exactly once, and may attend to
instead of any token. It belongs to the weights, never to the cache; its geometric key is not rotated.

    k_sem_null [G,Ds], k_geo_null [G,Dg], v_null [G,Dv], all zero at first (score 0, value 0)

Built by attention.module.
"""

from __future__ import annotations

import torch
from torch import nn

from dba_core.contracts import (
    AttentionShape,
    NoOptions,
    NullKV,
    NullTokenPlugin,
    NullTokenRequest,
    Support,
)
from dba_core.hookspecs import hookimpl


class LearnedNullToken(nn.Module):
    """Three parameters, returned as they are; `k_sem_null` is None where there is no semantic path."""

    k_sem_null: nn.Parameter | None

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        heads = shape.n_kv_heads
        self.k_geo_null = nn.Parameter(torch.zeros(heads, shape.geo_head_dim))
        self.v_null = nn.Parameter(torch.zeros(heads, shape.v_head_dim))
        semantic = nn.Parameter(torch.zeros(heads, shape.sem_head_dim)) if shape.sem_head_dim else None
        self.register_parameter("k_sem_null", semantic)

    def forward(self) -> NullKV:
        k_sem = (
            self.k_geo_null.new_zeros(len(self.k_geo_null), 0) if self.k_sem_null is None else self.k_sem_null
        )
        return NullKV(k_sem=k_sem, k_geo=self.k_geo_null, v=self.v_null)


class LearnedNullTokenPlugin:
    name = "learned"
    contract = 1
    summary = "one learned key/value per KV head, visible to every query"
    options_class = NoOptions

    def supports(self, request: NullTokenRequest, options: NoOptions) -> Support:
        return Support.yes()

    def build(self, request: NullTokenRequest, options: NoOptions) -> nn.Module:
        return LearnedNullToken(request.shape)


@hookimpl
def dba_null_token() -> NullTokenPlugin:
    return LearnedNullTokenPlugin()
