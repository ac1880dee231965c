"""The configuration of a whole run: what `dba run` reads, prints and records."""

from __future__ import annotations

import attrs

from dba_core.config.data import DataConfig
from dba_core.config.generation import GenerationConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.plugins import PluginChoices
from dba_core.config.training import EvaluationConfig, TrainingConfig
from dba_core.config.validators import at_least, not_empty, one_of

DEFAULT_KV_POLICY = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32")


@attrs.frozen(kw_only=True)
class RunConfig:
    """Everything that decides a run. device: `auto`, `cpu`, `cuda` or `cuda:N`. dtype: that of the forward pass
    (`bfloat16` is autocast; the weights stay float32)."""

    name: str = attrs.field(default="default", validator=not_empty)
    seed: int = attrs.field(default=1337, validator=at_least(0))
    device: str = attrs.field(default="auto", validator=not_empty)
    dtype: str = attrs.field(default="float32", validator=one_of("float32", "bfloat16"))
    model: ModelConfig = attrs.field(factory=ModelConfig)
    data: DataConfig = attrs.field(factory=DataConfig)
    training: TrainingConfig = attrs.field(factory=TrainingConfig)
    evaluation: EvaluationConfig = attrs.field(factory=EvaluationConfig)
    generation: GenerationConfig = attrs.field(factory=GenerationConfig)
    kv_policy: KVCachePolicy = DEFAULT_KV_POLICY
    plugins: PluginChoices = attrs.field(factory=PluginChoices)
