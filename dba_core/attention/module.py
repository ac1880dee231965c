"""Decoupled bottleneck attention as a module, for training, prefill and decode:

    y = out_proj(softmax(g(x) q_sem . k_sem / sqrt(Ds) + (1 - g(x)) R q_geo . R k_geo / sqrt(Dg)) v)

with g doubled so that 0.5 is neutral, an optional null key/value, and one projection at the end whatever the
path. The path follows from the arguments: no cache, several tokens into a cache, one token. Called by
model.block, and usable without the rest of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dba_core.attention.decode import DecodeBackends
from dba_core.attention.fused import fused_attention
from dba_core.attention.parts import chosen_or_given, plugin_choice, summarizer_choice
from dba_core.attention.prefill import prefill_attention
from dba_core.attention.projections import (
    Heads,
    ProjectionWeights,
    pack_null,
    project,
    project_packed,
)
from dba_core.attention.rope import shared_rope_table
from dba_core.cache.layer import LayerCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.plugins import PluginChoice
from dba_core.contracts import (
    DecodeBackend,
    GateRequest,
    Kind,
    NullKV,
    NullTokenRequest,
    SummarizerRequest,
)
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
