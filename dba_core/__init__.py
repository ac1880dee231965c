"""Decoupled bottleneck attention. The public names, each imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dba_core import hookspecs
    from dba_core.attention.module import DecoupledAttention
    from dba_core.attention.reference import reference_attention
    from dba_core.cache.kv_cache import KVCache
    from dba_core.config.attention import AttentionConfig
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.config.long_sequence import LongSequenceConfig
    from dba_core.config.model import ModelConfig
    from dba_core.config.run import GenerationConfig, RunConfig
    from dba_core.evaluation.metrics import fidelity_metrics
    from dba_core.generation.loop import generate
    from dba_core.hookspecs import hookimpl
    from dba_core.model.language_model import LanguageModel
    from dba_core.registry.choice import PluginChoice
    from dba_core.registry.registry import Registry
    from dba_core.runs.load import load_run

__all__ = [
    "AttentionConfig",
    "DecoupledAttention",
    "GenerationConfig",
    "KVCache",
    "KVCachePolicy",
    "LanguageModel",
    "LongSequenceConfig",
    "ModelConfig",
    "PluginChoice",
    "Registry",
    "RunConfig",
    "fidelity_metrics",
    "generate",
    "hookimpl",
    "hookspecs",
    "load_run",
    "reference_attention",
]

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
