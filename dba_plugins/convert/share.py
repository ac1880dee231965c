"""A model with other attention layers that shares everything else with the model that it was made of.

A conversion changes attention alone: embeddings and feed-forward parts, most of the weights, are in memory
once. Called by `decouple` and `comparators`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import cast

from torch import nn

from dba_core.attention.module import DecoupledAttention
from dba_core.config.model import ModelConfig
from dba_core.model.block import Block
from dba_core.model.language_model import LanguageModel


def with_attentions(
    source: LanguageModel, attentions: Sequence[DecoupledAttention], *, config: ModelConfig
) -> LanguageModel:
    """attentions: one per layer. config: resolved, of the model that this makes."""
    model = copy.copy(source)
    model._modules = dict(source._modules)
    model.config = config
    blocks = []
    for block, attention in zip(cast("Iterable[Block]", source.blocks), attentions, strict=True):
        twin = copy.copy(block)
        twin._modules = {**block._modules, "attn": attention}
        blocks.append(twin)
    model.blocks = nn.ModuleList(blocks)
    return model
