"""What a run will be, before it trains: its model, data, plugins and cache as data; and the dry run.

Sizes are bytes. `summary.json` begins with the same fields, and `pages` shows both in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.config.loading import LoadedConfig
from dba_core.config.model import ModelConfig
from dba_core.free_memory import free_bytes
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginRecord
from dba_core.registry.plugin_loading import options_to_dict
from dba_core.report import as_plain
from dba_core.runs.estimate import Cost, KvMemory, MemoryNeed, kv_memory, model_cost, training_need

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel
    from dba_core.runs.prepare import PlacedSelection, Prepared

#: What becomes of the null token in decoding.
INACTIVE, UNFUSED, FUSED = "Inactive", "Active (Unfused)", "Active (Fused)"


@attrs.frozen(kw_only=True)
class ModelFacts:
    """The model that was trained. `layout` is `model.attention.mode`."""

    layout: str
    cost: Cost
    n_layers: int
    d_model: int
    d_ff: int
    context: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    sem_head_dim: int
    geo_head_dim: int
    v_head_dim: int


@attrs.frozen(kw_only=True)
class PlacedChoice:
    """A plugin as the registry records it, and what became of it in this model.

    layers: the layers that have it, as in `0-3,6`. passed_over: by `auto`, before it. not_built: why the
    model does without it all the same, None where it has it.
    """

    name: str
    options: dict[str, Any]
    record: PluginRecord
    layers: str
    passed_over: tuple[str, ...]
    not_built: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, on one level."""
        return {
            "name": self.name,
            "distribution": self.record.distribution,
            "version": self.record.version,
            "contract": self.record.contract,
            "options": as_plain(self.options),
            "how": self.record.how,
            "why": self.record.why,
            "layers": self.layers,
            "passed_over": list(self.passed_over),
            "not_built": self.not_built,
        }


@attrs.frozen(kw_only=True)
class LongSequenceFacts:
    """Whether the long-sequence training path can be taken at this context, and its numbers."""

    text: str
    enabled: bool
    active: bool
    threshold: int
    mem_block: int
    local_window: int
    q_chunk: int
    mem_summarizer: str | None
    mass_correction: bool
    exact_every: int


@attrs.frozen(kw_only=True)
class Outline:
    """What is known of a run before it trains.

    plugins: by kind, what the layers without a choice of their own have; layer_plugins: the choices of single
    layers, by the layers and the kind.
    """

    name: str
    model: ModelFacts
    data: dict[str, Any]
    plugins: dict[str, PlacedChoice]
    layer_plugins: dict[str, dict[str, PlacedChoice]]
    kv_policy: str
    kv_memory: KvMemory
    null_attention: str
    long_sequence: LongSequenceFacts
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that is not finite is None."""
        plain: dict[str, Any] = as_plain(self)
        return {
            **plain,
            "plugins": _plain_choices(self.plugins),
            "layer_plugins": {layers: _plain_choices(own) for layers, own in self.layer_plugins.items()},
        }


@attrs.frozen(kw_only=True)
class DryRun(Outline):
    """The outline of a run, and what its training would take. training_flops: of all steps together.

    memory: what training needs at least; memory_free: bytes of the device, None where they are not known.
    """

    device: str
    steps: int
    training_tokens: int
    training_flops: int
    memory: MemoryNeed
    memory_free: int | None


def _plain_choices(choices: dict[str, PlacedChoice]) -> dict[str, Any]:
    return {kind: each.to_dict() for kind, each in choices.items()}


def outline_of(prepared: Prepared) -> Outline:
    """What is known of a prepared run."""
    config, model = prepared.config, prepared.config.model
    plugins: dict[str, PlacedChoice] = {}
    layer_plugins: dict[str, dict[str, PlacedChoice]] = {}
    for each in prepared.selections.placed():
        place = layer_plugins.setdefault(each.where, {}) if each.text else plugins
        place[each.selection.kind] = _plugin(each, prepared)
    return Outline(
        name=config.name,
        model=_model(prepared),
        data=prepared.corpus.describe(),
        plugins=plugins,
        layer_plugins=layer_plugins,
        kv_policy=prepared.kv_policy.short,
        kv_memory=kv_memory(model.attention.shape, model.n_layers, prepared.kv_policy, context=model.context),
        null_attention=null_attention(prepared.model, prepared.selections.decode_backends),
        long_sequence=_long_sequence(prepared),
        warnings=prepared.warnings,
    )


def null_attention(model: LanguageModel, decode: Sequence[Selection]) -> str:
    """Whether there is a null token, and whether every backend that decodes one has it in its own kernel.

    decode: the backend of every layer.
    """
    pairs = zip(model.attentions, decode, strict=True)
    fused = [selection.build().fused_null for layer, selection in pairs if layer.null_token is not None]
    if not fused:
        return INACTIVE
    return FUSED if all(fused) else UNFUSED


def _model(prepared: Prepared) -> ModelFacts:
    model = prepared.config.model
    shape = model.attention.shape
    assert model.d_ff is not None
    assert model.vocab_size is not None
    return ModelFacts(
        layout=model.attention.mode,
        cost=model_cost(
            ((name, tuple(parameter.shape)) for name, parameter in prepared.model.named_parameters()),
            shape=shape,
            n_layers=model.n_layers,
            context=model.context,
            tied_embeddings=model.tie_embeddings,
        ),
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_ff=model.d_ff,
        context=model.context,
        vocab_size=model.vocab_size,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        sem_head_dim=shape.sem_head_dim,
        geo_head_dim=shape.geo_head_dim,
        v_head_dim=shape.v_head_dim,
    )


def _plugin(placed: PlacedSelection, prepared: Prepared) -> PlacedChoice:
    selection = placed.selection
    return PlacedChoice(
        name=selection.name,
        options=options_to_dict(selection.options),
        record=selection.record,
        layers=placed.where,
        passed_over=tuple(map(str, selection.passed_over)),
        not_built=_not_built(placed, prepared),
    )


def _not_built(placed: PlacedSelection, prepared: Prepared) -> str | None:
    """A summarizer is chosen for every model with a semantic path, and made where its path can be reached."""
    if placed.selection.kind != "summarizer":
        return None
    layers = prepared.model.attentions
    if any(layers[layer].summarizer is not None for layer in placed.layers):
        return None
    return _below_threshold(prepared.config.model)


def _below_threshold(model: ModelConfig) -> str:
    threshold = model.train_long_seq.threshold
    return f"the context of {model.context} is below the threshold of {threshold} tokens"


def _long_sequence(prepared: Prepared) -> LongSequenceFacts:
    """What the long-sequence training path is set to, and whether training at this context takes it."""
    model = prepared.config.model
    attention = prepared.model.attentions[0]
    chosen = prepared.config.plugins.summarizer.name
    knobs = model.train_long_seq.resolved(context=model.context, device=prepared.config.device)
    active = attention.summarizer is not None
    if active:
        exact = f"one step in {knobs.exact_every} exact" if knobs.exact_every else "no exact steps"
        names = prepared.selections.names("summarizer")
        text = (
            f"active from {knobs.threshold} tokens on: mem_block {knobs.mem_block}, local_window "
            f"{knobs.local_window}, q_chunk {knobs.q_chunk}, summarizer {names}, mass "
            f"correction {'on' if knobs.mass_correction else 'off'}, {exact}"
        )
    elif not knobs.enabled:
        text = "off (model.train_long_seq.enabled = false)"
    elif attention.long_sequence is None:
        text = f"inactive: layout {model.attention.mode!r} has no semantic path"
    else:
        text = f"inactive: {_below_threshold(model)}"
    return LongSequenceFacts(
        text=text,
        enabled=knobs.enabled,
        active=active,
        threshold=knobs.threshold,
        mem_block=knobs.mem_block,
        local_window=knobs.local_window,
        q_chunk=knobs.q_chunk,
        mem_summarizer=None if chosen == "auto" else chosen,
        mass_correction=knobs.mass_correction,
        exact_every=knobs.exact_every,
    )


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
    from dba_core.runs.prepare import prepare, resolve_device

    config = attrs.evolve(loaded.config, device=resolve_device(loaded.config.device))
    prepared = prepare(
        config,
        registry,
        device=config.device,
        allow_drift=allow_drift,
        strict=strict,
        shapes_only=True,
    )
    outline = outline_of(prepared)
    tokens = config.training.steps * config.training.batch_size * config.model.context
    return DryRun(
        **attrs.asdict(outline, recurse=False),
        device=config.device,
        steps=config.training.steps,
        training_tokens=tokens,
        training_flops=tokens * outline.model.cost.training_flops_per_token,
        memory=training_need(prepared.config, parameters=outline.model.cost.parameters),
        memory_free=free_bytes(config.device),
    )
