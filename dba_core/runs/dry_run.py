"""`dba run --dry-run`: what a configuration would be and cost. Reads the corpus, gives the model no memory,
trains nothing, writes nothing.
"""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.loading import LoadedConfig
from dba_core.free_memory import free_bytes
from dba_core.registry import Registry
from dba_core.report import as_plain
from dba_core.runs.device import resolve_device
from dba_core.runs.evaluate import null_attention
from dba_core.runs.kv_memory import KvMemory
from dba_core.runs.memory_need import MemoryNeed, training_need
from dba_core.runs.outcome import (
    layer_plugin_facts,
    long_sequence_facts,
    memory_facts,
    model_facts,
    plugin_facts,
)
from dba_core.runs.prepare import prepare
from dba_core.runs.summary import LongSequenceFacts, ModelFacts, PluginFacts


@attrs.frozen(kw_only=True)
class DryRun:
    """The part of a summary that is known before training. training_flops: of all steps together.

    memory: what training needs at least; memory_free: bytes of the device, None where they are not known.
    """

    name: str
    device: str
    model: ModelFacts
    data: dict[str, Any]
    plugins: dict[str, PluginFacts]
    layer_plugins: dict[str, dict[str, PluginFacts]]
    kv_policy: str
    kv_memory: KvMemory
    null_attention: str
    long_sequence: LongSequenceFacts
    steps: int
    training_tokens: int
    training_flops: int
    memory: MemoryNeed
    memory_free: int | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain: dict[str, Any] = as_plain(self)
        return plain


def dry_run(
    loaded: LoadedConfig,
    *,
    registry: Registry | None = None,
    allow_drift: bool = False,
    strict: bool = False,
) -> DryRun:
    """Prepare the run as `run_job` does and describe it.

    Raises what the run would raise before it trains, but for memory: what would not fit is described.
    """
    registry = Registry.default() if registry is None else registry
    config = attrs.evolve(loaded.config, device=resolve_device(loaded.config.device))
    prepared = prepare(
        config,
        registry,
        device=config.device,
        allow_drift=allow_drift,
        strict=strict,
        shapes_only=True,
    )
    model = model_facts(prepared)
    tokens = config.training.steps * config.training.batch_size * config.model.context
    return DryRun(
        name=config.name,
        device=config.device,
        model=model,
        data=prepared.corpus.describe(),
        plugins=plugin_facts(prepared),
        layer_plugins=layer_plugin_facts(prepared),
        kv_policy=prepared.kv_policy.short,
        kv_memory=memory_facts(prepared),
        null_attention=null_attention(prepared.model, prepared.selections.decode_backends),
        long_sequence=long_sequence_facts(prepared),
        steps=config.training.steps,
        training_tokens=tokens,
        training_flops=tokens * model.cost.training_flops_per_token,
        memory=training_need(prepared.config, parameters=model.cost.parameters),
        memory_free=free_bytes(config.device),
        warnings=prepared.warnings,
    )
