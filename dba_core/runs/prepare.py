"""Everything that a run needs before it may leave a trace: device, plugins, data, model, all resolved.

A wrong configuration, a missing plugin or an unreadable corpus stops here, and no folder has been made. Which
plugins a configuration gets is asked, layer by layer, of attention built as the model will build it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch

from dba_core.config.kv_policy import KVCachePolicy, check_formats
from dba_core.config.model import ModelConfig
from dba_core.config.run import DataConfig, RunConfig
from dba_core.contracts import Kind
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.data.text_sources import INSTALLED
from dba_core.errors import ConfigError, UnsupportedError
from dba_core.free_memory import many, require_memory
from dba_core.model.block import attention_of_layer
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry, Selection, check_options, check_records, refuse_fallbacks
from dba_core.registry.choice import PluginChoice, PluginChoices, by_layer, layers_text, parse_layers
from dba_core.runs.estimate import least_parameters, policy_of, training_need
from dba_core.serialization.validators import check_device_name

#: So many bytes no device has: not even the shapes of such a model are made.
NOWHERE = 1 << 46


@attrs.frozen(kw_only=True, eq=False)
class PlacedSelection:
    """One selection and where it holds. text: the layers as the configuration has them, "" without any."""

    text: str
    layers: frozenset[int]
    selection: Selection

    @property
    def where(self) -> str:
        """The layers by number."""
        return layers_text(self.layers)


@attrs.frozen(kw_only=True, eq=False)
class Selections:
    """What was selected for every layer, first layer first. A kind that the model has no place for lacks."""

    choices: PluginChoices
    layers: tuple[dict[Kind, Selection], ...]

    def placed(self) -> Iterator[PlacedSelection]:
        """Every selection once, in the order of the kinds, the choice of all other layers first."""
        for text, kind, _ in self.choices.entries():
            layers = self._layers_of(kind, text)
            if layers and kind in self.layers[min(layers)]:
                yield PlacedSelection(text=text, layers=layers, selection=self.layers[min(layers)][kind])

    def of(self, kind: Kind) -> list[PlacedSelection]:
        """Those of one kind."""
        return [each for each in self.placed() if each.selection.kind == kind]

    def names(self, kind: Kind) -> str:
        """The names of one kind, with their layers where they differ."""
        return by_layer([layer[kind].name for layer in self.layers])

    @property
    def decode_backends(self) -> list[Selection]:
        """The decode backend of every layer."""
        return [layer["decode_backend"] for layer in self.layers]

    def _layers_of(self, kind: Kind, text: str) -> frozenset[int]:
        if text:
            return parse_layers(text)
        own = frozenset[int]().union(*map(parse_layers, self.choices.own(kind)))
        return frozenset(range(len(self.layers))) - own


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


def select_plugins(
    config: RunConfig, registry: Registry, *, device: str, shapes_only: bool = False
) -> Selections:
    """The selection of every kind that the model has. Raises PluginError, ConfigError or UnsupportedError.

    shapes_only: asked of attention that has shapes and no memory.
    """
    choices = model_choices(config.plugins)
    model = attrs.evolve(
        config.model, attention=config.model.attention.resolved(d_model=config.model.d_model)
    )
    layers: list[dict[Kind, Selection]] = []
    for layer in range(model.n_layers):
        own = choices.of_layer(layer)
        same = next((found for before, found in enumerate(layers) if choices.of_layer(before) == own), None)
        if same is None:
            with torch.device("meta") if shapes_only else contextlib.nullcontext():
                attention = attention_of_layer(model, choices, layer=layer, registry=registry, device=device)
            decode = attention.selection_without_cache(
                policy_of(config), capacity=model.context, device=device
            )
            same = {**attention.selections, "decode_backend": decode}
        layers.append(same)
    return Selections(choices=choices, layers=tuple(layers))


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


def explain_selection(kind: Kind, config: RunConfig, registry: Registry) -> list[PlacedSelection]:
    """The selections of one kind. Raises UnsupportedError where the model has no place for that kind."""
    selections = select_plugins(config, registry, device=resolve_device(config.device)).of(kind)
    if not selections:
        knobs, mode = config.model.train_long_seq, config.model.attention.mode
        raise UnsupportedError(
            f"this model has no {kind}: model.train_long_seq.enabled={str(knobs.enabled).lower()} and "
            f"model.attention.mode={mode!r}; a {kind} needs the long-sequence path and semantic keys"
        )
    return selections


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
    resolved = attrs.evolve(
        config,
        data=_resolved_data(config),
        model=_resolved_model(config, vocab_size=corpus.tokenizer.vocab_size, device=device),
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


def _resolved_data(config: RunConfig) -> DataConfig:
    """Paths as absolute ones, so that the run can be evaluated from anywhere."""
    data, tokenizer = config.data, Path(config.data.tokenizer)
    source = data.source if data.source in INSTALLED else str(Path(data.source).resolve())
    name = str(tokenizer.resolve()) if tokenizer.is_file() else data.tokenizer
    return attrs.evolve(data, source=source, tokenizer=name)


def _resolved_model(config: RunConfig, *, vocab_size: int, device: str) -> ModelConfig:
    try:
        resolved = config.model.resolved(vocab_size=vocab_size)
    except ConfigError as error:
        raise error.under("model") from None
    long_sequence = resolved.train_long_seq.resolved(context=resolved.context, device=device)
    return attrs.evolve(resolved, train_long_seq=long_sequence.as_typed())


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
