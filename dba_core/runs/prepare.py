"""Everything that a run needs before it may leave a trace: device, plugins, data, model, all resolved.

A wrong configuration, a missing plugin or an unreadable corpus stops here, and no folder has been made. Which
plugins a configuration gets is asked of the model that is built, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from dba_core.config.kv_policy import KVCachePolicy, check_formats
from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.config.run import DataConfig, RunConfig
from dba_core.contracts import Kind
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.data.text_sources import INSTALLED
from dba_core.errors import ConfigError
from dba_core.free_memory import many, require_memory
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, Selection, check_options, check_records, refuse_fallbacks
from dba_core.registry.choice import PluginChoice, PluginChoices, by_layer, layers_text, parse_layers
from dba_core.registry.plugin_loading import options_to_dict
from dba_core.report import as_plain
from dba_core.runs.estimate import least_parameters, policy_of, training_need
from dba_core.serialization.validators import check_device_name

#: So many bytes no device has: not even the shapes of such a model are made.
NOWHERE = 1 << 46


@attrs.frozen(kw_only=True, eq=False)
class PlacedSelection:
    """One selection and where it holds. text: the layers as the configuration has them, "" for those without
    a choice of their own. not_built: why the model does without it all the same, None where it has it.
    """

    text: str
    layers: frozenset[int]
    selection: Selection
    not_built: str | None = None

    @property
    def where(self) -> str:
        """The layers by number, as in `0-3,6`."""
        return layers_text(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what the registry records, and what became of it in this model."""
        record = self.selection.record
        return {
            "name": self.selection.name,
            "distribution": record.distribution,
            "version": record.version,
            "contract": record.contract,
            "options": as_plain(options_to_dict(self.selection.options)),
            "how": record.how,
            "why": record.why,
            "layers": self.where,
            "passed_over": list(map(str, self.selection.passed_over)),
            "not_built": self.not_built,
        }


@attrs.frozen(kw_only=True, eq=False)
class Prepared:
    """config: with every derived value and every plugin's record. placed: every selection once. warnings: of
    drift that was allowed, and of what is probably not meant.
    """

    config: RunConfig
    corpus: Corpus
    model: LanguageModel
    placed: list[PlacedSelection]
    warnings: tuple[str, ...]

    @property
    def kv_policy(self) -> KVCachePolicy:
        return policy_of(self.config)

    def names(self, kind: Kind) -> str:
        """The plugins of a kind that every layer has, with their layers where they differ."""
        return by_layer([attention.selections[kind].name for attention in self.model.attentions])


def resolve_device(text: str) -> str:
    """`auto` is CUDA where there is a GPU, else the CPU. Raises ConfigError for a name that is no device and
    for a GPU that is not there.
    """
    check_device_name(text, path="device")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if count else "cpu"
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"{text!r} is not there: {_why_no_gpu(count)}; give device='cpu' or 'auto'",
            path="device",
        )
    return text


def _why_no_gpu(count: int) -> str:
    """What this torch was built with, and what it finds."""
    if torch.version.cuda is None:
        return (
            f"this torch ({torch.__version__}) was built without CUDA. Install a build with CUDA "
            "(https://pytorch.org/get-started)"
        )
    found = f"finds {count} GPU(s)" if count else "finds no GPU that it can use (see nvidia-smi)"
    return f"this torch ({torch.__version__}) was built for CUDA {torch.version.cuda} and {found}"


def model_choices(choices: PluginChoices) -> PluginChoices:
    """The choices to build a model from.

    A decode backend that `auto` chose for the run's cache stays automatic: another device, or a cache of
    another format, such as the fp32 reference of the fidelity figures, may need another one.
    """
    return choices.with_choices(
        {
            (text, kind): PluginChoice()
            for text, kind, choice in choices.entries()
            if kind == "decode_backend" and choice.record is not None and choice.record.how == "auto"
        }
    )


def placed_selections(
    model: LanguageModel, choices: PluginChoices, policy: KVCachePolicy, *, device: str
) -> list[PlacedSelection]:
    """What was selected for the model's layers and for a cache of `policy`, in the order of the kinds, the
    choice of all other layers first. A kind that the model has no place for lacks.
    """
    placed = []
    for text, kind, _ in choices.entries():
        own = frozenset[int]().union(*map(parse_layers, choices.own(kind)))
        layers = parse_layers(text) if text else frozenset(range(model.config.n_layers)) - own
        if not layers:
            continue
        attention = model.attentions[min(layers)]
        selection = (
            attention.selection_without_cache(policy, capacity=model.config.context, device=device)
            if kind == "decode_backend"
            else attention.selections.get(kind)
        )
        if selection is not None:
            unreached = kind == "summarizer" and all(model.attentions[n].summarizer is None for n in layers)
            why = below_threshold(model.config) if unreached else None
            placed.append(PlacedSelection(text=text, layers=layers, selection=selection, not_built=why))
    return placed


def below_threshold(model: ModelConfig) -> str:
    """Why the long-sequence path of a model is not taken at its context."""
    threshold = model.train_long_seq.resolved(context=model.context).threshold
    return f"the context of {model.context} is below the threshold of {threshold} tokens"


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
    check_formats(policy_of(config), registry)
    corpus = load_corpus(config.data, context=config.model.context)
    model_config = resolved_model(config, vocab_size=corpus.tokenizer.vocab_size)
    long_sequence = model_config.train_long_seq.resolved(context=model_config.context, device=device)
    resolved = attrs.evolve(
        config,
        data=_resolved_data(config),
        model=attrs.evolve(model_config.as_typed(), train_long_seq=long_sequence.as_typed()),
        kv_policy=policy_of(config),
        generation=attrs.evolve(config.generation, seed=config.seed)
        if config.generation.seed is None
        else config.generation,
    )
    parameters = least_parameters(model_config)
    need = training_need(resolved, parameters=parameters, processes=processes)
    if not shapes_only or need["total"] >= NOWHERE:
        smaller = "model.n_layers, model.d_model, training.batch_size or model.context"
        sequences = many(config.training.batch_size)
        what = f"a run of at least {many(parameters)} parameters and {sequences} sequences a step"
        require_memory(need["weights"], device="cpu", what=what, smaller=smaller)  # where they are drawn
        require_memory(need["total"], device=device, what=what, smaller=smaller)
    choices = model_choices(config.plugins)
    model = LanguageModel(
        resolved.model,
        plugins=choices,
        registry=registry,
        seed=resolved.seed,
        device=device,
        shapes_only=shapes_only,
    )
    placed = placed_selections(model, choices, policy_of(config), device=device)
    if strict:
        refuse_fallbacks((each.where, each.selection) for each in placed)
        for attention in model.attentions:
            attention.check_every_call()
    resolved = attrs.evolve(resolved, plugins=_recorded(config.plugins, placed, registry))
    return Prepared(
        config=resolved,
        corpus=corpus,
        model=model,
        placed=placed,
        warnings=(*warnings, *_notices(resolved)),
    )


def _resolved_data(config: RunConfig) -> DataConfig:
    """Paths as absolute ones, so that the run can be evaluated from anywhere."""
    data, tokenizer = config.data, Path(config.data.tokenizer)
    source = data.source if data.source in INSTALLED else str(Path(data.source).resolve())
    name = str(tokenizer.resolve()) if tokenizer.is_file() else data.tokenizer
    return attrs.evolve(data, source=source, tokenizer=name)


def resolved_model(config: RunConfig, *, vocab_size: int | None = None) -> ResolvedModel:
    """vocab_size: the tokenizer's. Raises ConfigError under `model`."""
    try:
        return config.model.resolved(vocab_size=vocab_size)
    except ConfigError as error:
        raise error.under("model") from None


def _notices(config: RunConfig) -> Iterator[str]:
    """What is allowed and probably not meant."""
    policy, context = policy_of(config), config.model.context
    quantized = any(tensor.qblock for tensor in (policy.k_sem, policy.k_geo, policy.v))
    if quantized and policy.residual >= context and config.evaluation.fidelity_tokens:
        yield (
            f"the fp16 window of resid={policy.residual} covers the whole context of {context} tokens, so "
            "the fidelity figures do not see the quantized formats; measure with a smaller resid."
        )


def _recorded(choices: PluginChoices, placed: Sequence[PlacedSelection], registry: Registry) -> PluginChoices:
    """The choices by name, with options and record. A choice that no layer has a place for stays as it is."""
    made = {(each.text, each.selection.kind): each.selection.choice() for each in placed}
    for text, kind, choice in choices.entries():
        if (text, kind) not in made and choice.name != "auto":
            registry.load(kind, choice.name)
    return choices.with_choices(made)
