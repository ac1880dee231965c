"""The configuration of a whole run: what `dba run` reads, prints and records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.config.data import DataConfig
from dba_core.config.generation import GenerationConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.mem_summarizer import moved
from dba_core.config.model import ModelConfig
from dba_core.config.training import EvaluationConfig, TrainingConfig
from dba_core.registry.choice import PluginChoices
from dba_core.serialization.validators import MAX_SEED, between, device_name, not_empty, one_of, real_text
from dba_core.serialization.values import Serializable, exact_types


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class RunConfig(Serializable):
    """Everything that decides a run.

    device: `auto`, `cpu`, `cuda` or `cuda:N`. dtype: that of the forward pass (`bfloat16` is autocast; the
    weights stay float32). kv_policy: None takes one that is smaller than fp16 at the model's context; a run
    records which.
    """

    name: str = attrs.field(default="default", validator=[not_empty, real_text])
    seed: int = attrs.field(default=1337, validator=between(0, MAX_SEED))
    device: str = attrs.field(default="auto", validator=device_name)
    dtype: str = attrs.field(default="float32", validator=one_of("float32", "bfloat16"))
    model: ModelConfig = attrs.field(factory=ModelConfig)
    data: DataConfig = attrs.field(factory=DataConfig)
    training: TrainingConfig = attrs.field(factory=TrainingConfig)
    evaluation: EvaluationConfig = attrs.field(factory=EvaluationConfig)
    generation: GenerationConfig = attrs.field(factory=GenerationConfig)
    kv_policy: KVCachePolicy | None = None
    plugins: PluginChoices = attrs.field(factory=PluginChoices)

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """Takes the summarizer's name in its former place too: `model.train_long_seq.mem_summarizer`."""
        return moved(data) if isinstance(data, Mapping) else data

    def __attrs_post_init__(self) -> None:
        self.plugins.check_layers(self.model.n_layers)
