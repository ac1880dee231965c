"""Configuration: attrs classes with exact types, presets, files and overrides. No torch."""

from __future__ import annotations

from dba_core.config.attention import AttentionConfig as AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy as KVCachePolicy
from dba_core.config.kv_policy import TensorFormat as TensorFormat
from dba_core.config.loading import LoadedConfig as LoadedConfig
from dba_core.config.loading import load_config as load_config
from dba_core.config.long_sequence import LongSequenceConfig as LongSequenceConfig
from dba_core.config.model import ModelConfig as ModelConfig
from dba_core.config.run import DataConfig as DataConfig
from dba_core.config.run import EvaluationConfig as EvaluationConfig
from dba_core.config.run import GenerationConfig as GenerationConfig
from dba_core.config.run import RunConfig as RunConfig
from dba_core.config.run import TrainingConfig as TrainingConfig
from dba_core.registry.choice import PluginChoice as PluginChoice
from dba_core.registry.choice import PluginChoices as PluginChoices
from dba_core.registry.choice import PluginRecord as PluginRecord
from dba_core.serialization.values import Serializable as Serializable
