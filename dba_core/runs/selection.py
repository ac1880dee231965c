"""Which plugins a configuration gets, asked of one attention layer built as the model will build it.

Nothing is trained and no data is read. Called by the preparation of a run and by `dba plugins why`.
"""

from __future__ import annotations

import attrs

from dba_core.attention.module import DecoupledAttention
from dba_core.config.plugins import PluginChoice, PluginChoices
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
from dba_core.runs.device import resolve_device


def select_plugins(config: RunConfig, registry: Registry, *, device: str) -> dict[Kind, Selection]:
    """The selection of every kind that the model has. Raises PluginError, ConfigError or UnsupportedError."""
    model, plugins = config.model, model_choices(config.plugins)
    attention = DecoupledAttention(
        model.attention.resolved(d_model=model.d_model),
        gate=plugins.gate,
        null_token=plugins.null_token,
        summarizer=plugins.summarizer,
        decode_backend=plugins.decode_backend,
        train_long_seq=model.train_long_seq,
        registry=registry,
        context=model.context,
        device=device,
    ).to(device)
    cache = attention.new_cache(batch=1, capacity=model.context, policy=config.kv_policy)
    return {**attention.selections, "decode_backend": attention.decode_selection(cache)}


def model_choices(choices: PluginChoices) -> PluginChoices:
    """The choices to build a model from.

    A decode backend that `auto` chose for the run's cache stays automatic: another device, or a cache of
    another format, such as the fp32 reference of the fidelity figures, may need another one.
    """
    record = choices.decode_backend.record
    if record is None or not record.why.startswith(("auto", "as recorded (auto")):
        return choices
    return attrs.evolve(choices, decode_backend=PluginChoice())


def explain_selection(kind: Kind, config: RunConfig, registry: Registry) -> Selection:
    """The selection of one kind. Raises UnsupportedError where the model has no place for that kind."""
    selections = select_plugins(config, registry, device=resolve_device(config.device))
    if kind not in selections:
        knobs, mode = config.model.train_long_seq, config.model.attention.mode
        raise UnsupportedError(
            f"this model has no {kind}: model.train_long_seq.enabled={str(knobs.enabled).lower()} and "
            f"model.attention.mode={mode!r}; a {kind} needs the long-sequence path and semantic keys"
        )
    return selections[kind]
