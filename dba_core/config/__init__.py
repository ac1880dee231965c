"""Configuration: attrs classes with exact types, their converter, presets, files and overrides. No torch."""

from __future__ import annotations

from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.config.loading import LoadedConfig, load_config
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import DataConfig, EvaluationConfig, GenerationConfig, RunConfig, TrainingConfig
from dba_core.registry.choice import PluginChoice, PluginChoices, PluginRecord
from dba_core.serialization.values import Serializable

__all__ = [
    "AttentionConfig",
    "DataConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "KVCachePolicy",
    "LoadedConfig",
    "LongSequenceConfig",
    "ModelConfig",
    "PluginChoice",
    "PluginChoices",
    "PluginRecord",
    "RunConfig",
    "Serializable",
    "TensorFormat",
    "TrainingConfig",
    "load_config",
]
