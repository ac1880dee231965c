"""A tiny model with enlarged weights, so that probabilities are far from uniform, and tokens for it."""

from __future__ import annotations

import numpy as np
import torch

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.model.language_model import LanguageModel

TOKENS = np.random.default_rng(0).integers(0, 50, 60).astype(np.uint16)


def sharp_model() -> LanguageModel:
    """Two layers, 50 tokens, context 16."""
    config = ModelConfig(
        vocab_size=50,
        context=16,
        n_layers=2,
        d_model=48,
        attention=AttentionConfig(n_heads=3, sem_head_dim=4, geo_head_dim=8, v_head_dim=8),
        train_long_seq=LongSequenceConfig(enabled=False),
    )
    model = LanguageModel(config, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter.mul_(4)
    return model
