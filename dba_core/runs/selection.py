"""Which plugins a configuration gets, asked of one attention layer built as the model will build it.

Nothing is trained and no data is read. Called by the preparation of a run and by `dba plugins why`.
"""

from __future__ import annotations

from dba_core.attention.module import DecoupledAttention
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.registry import Registry, Selection
from dba_core.runs.device import resolve_device


def select_plugins(config: RunConfig, registry: Registry, *, device: str) -> dict[Kind, Selection]:
    """The selection of every kind that the model has. Raises PluginError, ConfigError or UnsupportedError."""
    model = config.model
    attention = DecoupledAttention(
        model.attention.resolved(d_model=model.d_model),
        gate=config.plugins.gate,
        null_token=config.plugins.null_token,
        summarizer=config.plugins.summarizer,
        decode_backend=config.plugins.decode_backend,
        train_long_seq=model.train_long_seq,
        registry=registry,
        context=model.context,
        device=device,
    )
    cache = attention.new_cache(batch=1, capacity=model.context, policy=config.kv_policy)
    return {**attention.selections, "decode_backend": attention.decode_selection(cache)}


def explain_selection(kind: Kind, config: RunConfig, registry: Registry) -> Selection:
    """The selection of one kind."""
    return select_plugins(config, registry, device=resolve_device(config.device))[kind]
