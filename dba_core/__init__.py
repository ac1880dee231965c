"""Decoupled bottleneck attention. The public names, each imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dba_core import hookspecs as hookspecs
    from dba_core.attention.module import DecoupledAttention as DecoupledAttention
    from dba_core.attention.reference import reference_attention as reference_attention
    from dba_core.cache.kv_cache import KVCache as KVCache
    from dba_core.config.attention import AttentionConfig as AttentionConfig
    from dba_core.config.kv_policy import KVCachePolicy as KVCachePolicy
    from dba_core.config.long_sequence import LongSequenceConfig as LongSequenceConfig
    from dba_core.config.model import ModelConfig as ModelConfig
    from dba_core.config.run import GenerationConfig as GenerationConfig
    from dba_core.config.run import RunConfig as RunConfig
    from dba_core.evaluation.metrics import fidelity_metrics as fidelity_metrics
    from dba_core.generation.loop import generate as generate
    from dba_core.hookspecs import hookimpl as hookimpl
    from dba_core.model.language_model import LanguageModel as LanguageModel
    from dba_core.registry.choice import PluginChoice as PluginChoice
    from dba_core.registry.registry import Registry as Registry
    from dba_core.runs.load import load_run as load_run

_MODULES = {
    "AttentionConfig": "config.attention",
    "DecoupledAttention": "attention.module",
    "GenerationConfig": "config.run",
    "KVCache": "cache.kv_cache",
    "KVCachePolicy": "config.kv_policy",
    "LanguageModel": "model.language_model",
    "LongSequenceConfig": "config.long_sequence",
    "ModelConfig": "config.model",
    "PluginChoice": "registry.choice",
    "Registry": "registry.registry",
    "RunConfig": "config.run",
    "fidelity_metrics": "evaluation.metrics",
    "generate": "generation.loop",
    "hookimpl": "hookspecs",
    "load_run": "runs.load",
    "reference_attention": "attention.reference",
}
__all__ = ["hookspecs", *_MODULES]


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it."""
    if name == "hookspecs":
        return importlib.import_module("dba_core.hookspecs")
    if name not in _MODULES:
        raise AttributeError(f"module 'dba_core' has no attribute {name!r}; public: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"dba_core.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
