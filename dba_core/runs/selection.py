"""Which plugins a configuration gets, layer by layer, asked of attention built as the model will build it.

Nothing is trained and no data is read. Called by the preparation of a run and by `dba plugins why`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import torch

from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.errors import UnsupportedError
from dba_core.model.block import attention_of_layer
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice, PluginChoices, by_layer, layers_text, parse_layers
from dba_core.runs.device import resolve_device
from dba_core.runs.kv_memory import policy_of


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


def select_plugins(
    config: RunConfig, registry: Registry, *, device: str, shapes_only: bool = False
) -> Selections:
    """The selection of every kind that the model has. Raises PluginError, ConfigError or UnsupportedError.

    shapes_only: asked of attention that has shapes and no memory.
    """
    choices = model_choices(config.plugins)
    asked: list[tuple[PluginChoices, dict[Kind, Selection]]] = []
    layers = []
    for layer in range(config.model.n_layers):
        own = choices.of_layer(layer)
        same = [found for before, found in asked if before == own]
        layers.append(
            same[0]
            if same
            else _selected(config, choices, registry, layer=layer, device=device, shapes_only=shapes_only)
        )
        asked.append((own, layers[-1]))
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


def _selected(
    config: RunConfig,
    choices: PluginChoices,
    registry: Registry,
    *,
    layer: int,
    device: str,
    shapes_only: bool,
) -> dict[Kind, Selection]:
    model = attrs.evolve(
        config.model, attention=config.model.attention.resolved(d_model=config.model.d_model)
    )
    with torch.device("meta") if shapes_only else contextlib.nullcontext():
        attention = attention_of_layer(model, choices, layer=layer, registry=registry, device=device)
    decode = attention.selection_without_cache(policy_of(config), capacity=model.context, device=device)
    return {**attention.selections, "decode_backend": decode}
