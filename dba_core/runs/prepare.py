"""Everything that a run needs before it may leave a trace: plugins, data and model, checked and resolved.

A wrong configuration, a missing plugin or an unreadable corpus stops here, and no folder has been made.
Called by the job and by `dba run --dry-run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from dba_core.config.data import DataConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.errors import ConfigError
from dba_core.free_memory import many, require_memory
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, check_options, check_records, refuse_fallbacks
from dba_core.registry.choice import PluginChoices
from dba_core.runs.kv_memory import policy_of
from dba_core.runs.memory_need import least_parameters, training_need
from dba_core.runs.selection import Selections, model_choices, select_plugins

#: So many bytes no device has: not even the shapes of such a model are made.
NOWHERE = 1 << 46


@attrs.frozen(kw_only=True, eq=False)
class Prepared:
    """config: with every derived value and every plugin's record. warnings: of drift that was allowed."""

    config: RunConfig
    corpus: Corpus
    model: LanguageModel
    selections: Selections
    warnings: tuple[str, ...]

    @property
    def kv_policy(self) -> KVCachePolicy:
        return policy_of(self.config)


def prepare(
    config: RunConfig,
    registry: Registry,
    *,
    device: str,
    allow_drift: bool = False,
    strict: bool = False,
    processes: int = 1,
    shapes_only: bool = False,
) -> Prepared:
    """Check the records and the options, read the data, choose the plugins, build the model.

    device: where the model goes, `cuda:1` say; the configuration keeps its kind, `cuda`. strict: a choice of
    `auto` that is not its first one is an UnsupportedError, and plugins' results are looked at in every call.
    processes: that train together. shapes_only: the model has shapes and no memory, and it may be too large
    for this machine. Raises NotEnoughMemoryError for a run that cannot fit here (shapes_only: nowhere),
    RecordMismatchError, DataError, ConfigError, PluginError or UnsupportedError.
    """
    warnings = check_records(config.plugins, registry, allow_drift)
    check_options(model_choices(config.plugins), registry)
    corpus = load_corpus(config.data, context=config.model.context)
    resolved = attrs.evolve(
        config,
        data=_resolved_data(config.data),
        model=_resolved_model(config.model, vocab_size=corpus.tokenizer.vocab_size, device=device),
        kv_policy=policy_of(config),
        generation=attrs.evolve(
            config.generation,
            seed=config.generation.seed if config.generation.seed is not None else config.seed,
        ),
    )
    check_memory(resolved, device=device, processes=processes, least=NOWHERE if shapes_only else 0)
    selections = select_plugins(resolved, registry, device=device, shapes_only=shapes_only)
    if strict:
        refuse_fallbacks((each.where, each.selection) for each in selections.placed())
    resolved = attrs.evolve(resolved, plugins=_recorded(resolved.plugins, selections, registry))
    model = LanguageModel(
        resolved.model,
        plugins=model_choices(resolved.plugins),
        registry=registry,
        seed=resolved.seed,
        device=device,
        shapes_only=shapes_only,
    )
    if strict:
        for attention in model.attentions:
            attention.check_every_call()
    return Prepared(
        config=resolved,
        corpus=corpus,
        model=model,
        selections=selections,
        warnings=(*warnings, *_notices(resolved)),
    )


def check_memory(config: RunConfig, *, device: str, processes: int, least: int = 0) -> None:
    """Raise NotEnoughMemoryError for a run that needs more than is free, weights on the CPU included, where
    they are drawn. config: with a resolved model. least: bytes below which nobody asks.
    """
    parameters = least_parameters(config.model)
    need = training_need(config, parameters=parameters, processes=processes)
    smaller = "model.n_layers, model.d_model, training.batch_size or model.context"
    sequences = many(config.training.batch_size)
    what = f"a run of at least {many(parameters)} parameters and {sequences} sequences a step"
    if need.total < least:
        return
    require_memory(need.weights, device="cpu", what=what, smaller=smaller)
    require_memory(need.total, device=device, what=what, smaller=smaller)


def _resolved_data(data: DataConfig) -> DataConfig:
    """Paths as absolute ones, so that the run can be evaluated from anywhere."""
    source = data.source if data.source == "pydoc" else str(Path(data.source).resolve())
    tokenizer = Path(data.tokenizer)
    return attrs.evolve(
        data, source=source, tokenizer=str(tokenizer.resolve()) if tokenizer.is_file() else data.tokenizer
    )


def _resolved_model(model: ModelConfig, *, vocab_size: int, device: str) -> ModelConfig:
    try:
        resolved = model.resolved(vocab_size=vocab_size)
    except ConfigError as error:
        raise error.under("model") from None
    long_sequence = resolved.train_long_seq.resolved(context=resolved.context, device=device)
    return attrs.evolve(resolved, train_long_seq=long_sequence)


def _notices(config: RunConfig) -> Iterator[str]:
    """What is allowed and probably not meant."""
    policy, context = policy_of(config), config.model.context
    quantized = any(tensor.qblock for tensor in (policy.k_sem, policy.k_geo, policy.v))
    if quantized and policy.residual >= context and config.evaluation.fidelity_tokens:
        yield (
            f"the fp16 window of resid={policy.residual} covers the whole context of {context} tokens, so "
            "the fidelity figures do not see the quantized formats; measure with a smaller resid."
        )


def _recorded(choices: PluginChoices, selections: Selections, registry: Registry) -> PluginChoices:
    """The choices by name, with options and record. A choice that no layer has a place for stays as it is."""
    placed = {(each.text, each.selection.kind): each.selection for each in selections.placed()}
    for text, kind, choice in choices.entries():
        if (text, kind) not in placed and choice.name != "auto":
            registry.load(kind, choice.name)
    return choices.with_choices({place: selection.choice() for place, selection in placed.items()})
