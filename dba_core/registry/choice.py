"""Which plugin is chosen for each kind, in all layers or in some, and what a run recorded about it.

Layers stand in texts by number: `0-3` is 0, 1, 2, 3; `0-3,6` adds 6. The first layer is 0.
"""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from dba_core.contracts import Kind
from dba_core.errors import ConfigError, unknown
from dba_core.kinds import per_layer
from dba_core.serialization.validators import not_empty, one_of
from dba_core.serialization.values import Serializable, exact_types

#: How a plugin came to be chosen: its name was given, `auto` chose it, or a record says so.
How = Literal["named", "auto", "recorded"]
_PART = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class PluginRecord(Serializable):
    """What a run really used: written by the registry, checked when the configuration is run again.

    how: it came to be chosen; why: for people.
    """

    distribution: str
    version: str
    contract: int
    how: str = attrs.field(validator=one_of(*typing.get_args(How)))
    why: str

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """In a record without `how` only the text says it."""
        if not isinstance(data, Mapping) or "how" in data or not isinstance(data.get("why"), str):
            return data
        why = data["why"].removeprefix("as recorded (").removesuffix(")")
        how: How = "auto" if why.startswith("auto") else "named" if why == data["why"] else "recorded"
        return {**data, "how": how, "why": why if how == "auto" else data["why"]}


@attrs.frozen(field_transformer=exact_types, repr=False)
class PluginChoice(Serializable):
    """A plugin by name (`auto`: the registry chooses) and its options; `record` only in a resolved config."""

    name: str = attrs.field(default="auto", validator=not_empty)
    options: dict[str, Any] = attrs.field(factory=dict, kw_only=True)
    record: PluginRecord | None = attrs.field(default=None, kw_only=True)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        record = self.record
        recorded = "" if record is None else f", recorded with {record.distribution} {record.version}"
        return f"<PluginChoice: {self.name}{options}{recorded}>"

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """A bare name stands for a choice without options."""
        return {"name": data} if isinstance(data, str) else data


def _fields() -> dict[str, Any]:
    """Of PluginChoices: one for each kind that layers choose, and the choices of single layers."""
    of_kinds = {kind: attrs.field(factory=PluginChoice, type=PluginChoice) for kind in per_layer()}
    return {**of_kinds, "layers": attrs.field(factory=dict, type=dict[str, dict[str, PluginChoice]])}


@attrs.frozen(kw_only=True, init=False, these=_fields(), field_transformer=exact_types)
class PluginChoices(Serializable):
    """One choice per kind, and in `layers` those of single layers: `layers["0-3"]["summarizer"]`."""

    def __init__(self, **choices: Any) -> None:
        """KIND: the choice of that kind; layers."""
        self.__attrs_init__(**choices)

    if TYPE_CHECKING:
        layers: dict[str, dict[str, PluginChoice]]

        def __getattr__(self, kind: str) -> PluginChoice:
            """There is one attribute for each kind."""

    def __attrs_post_init__(self) -> None:
        for text, choices in self.layers.items():
            try:
                parse_layers(text)
            except ConfigError as error:
                raise error.under("layers") from None
            for kind in choices:
                if kind not in per_layer():
                    raise ConfigError(unknown("plugin kind", kind, per_layer()), path=f"layers.{text}.{kind}")
        for kind in per_layer():
            self._check_one_choice(kind)

    def of(self, kind: Kind) -> PluginChoice:
        """The choice of one kind, for the layers without one of their own."""
        choice: PluginChoice = getattr(self, kind)
        return choice

    def own(self, kind: Kind) -> dict[str, PluginChoice]:
        """The choices of one kind that single layers have, by the text of the layers, first layers first."""
        texts = [text for text, choices in self.layers.items() if kind in choices]
        return {text: self.layers[text][kind] for text in sorted(texts, key=lambda t: min(parse_layers(t)))}

    def entries(self) -> Iterator[tuple[str, Kind, PluginChoice]]:
        """Every choice with the text of its layers ("": the layers without a choice of their own)."""
        for kind in per_layer():
            yield "", kind, self.of(kind)
            for text, choice in self.own(kind).items():
                yield text, kind, choice

    def of_layer(self, layer: int) -> PluginChoices:
        """The choices of one layer."""
        found = {
            kind: choice for text, kind, choice in self.entries() if text and layer in parse_layers(text)
        }
        return attrs.evolve(self, **{"layers": {}, **found})

    def with_choices(self, choices: Mapping[tuple[str, str], PluginChoice]) -> PluginChoices:
        """These choices replaced, by the text of the layers as in `entries`, and the kind."""
        return _of_table({(text, kind): choices.get((text, kind), own) for text, kind, own in self.entries()})

    def in_all_layers(self, kind: Kind, choice: PluginChoice) -> PluginChoices:
        """`choice` in every layer, those with a choice of their own included."""
        kept = {(text, other): own for text, other, own in self.entries() if other != kind}
        return _of_table({**kept, ("", kind): choice})

    def check_layers(self, n_layers: int) -> None:
        """Raise ConfigError where a choice is for a layer that a model of `n_layers` does not have."""
        for text in self.layers:
            last = max(parse_layers(text))
            if last >= n_layers:
                raise ConfigError(
                    f"layer {last} is not there; model.n_layers={n_layers} allows 0 to {n_layers - 1}",
                    path=f"plugins.layers.{text}",
                )

    def _check_one_choice(self, kind: Kind) -> None:
        for (text, choice), (other, second) in itertools.combinations(self.own(kind).items(), 2):
            both = parse_layers(text) & parse_layers(other)
            if both:
                raise ConfigError(
                    f"layer {min(both)} has two choices of {kind}: {choice.name!r} from {in_words(text)} "
                    f"and {second.name!r} from {in_words(other)}; give each layer one",
                    path="layers",
                )


def _of_table(table: Mapping[tuple[str, Kind], PluginChoice]) -> PluginChoices:
    """By the text of the layers, as `entries` gives them, and the kind."""
    layers: dict[str, dict[Kind, PluginChoice]] = {}
    for (text, kind), choice in table.items():
        if text:
            layers.setdefault(text, {})[kind] = choice
    return PluginChoices(layers=layers, **{kind: table["", kind] for kind in per_layer()})


def parse_layers(text: str) -> frozenset[int]:
    """The layers that a text names. Raises ConfigError for anything else."""
    layers: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(
                f"{text!r} names no layers; allowed: numbers from 0 and ranges with commas between them, as "
                "in 0-3 or 0-3,6"
            )
        layers.update(range(first, last + 1))
    return frozenset(layers)


def layers_text(layers: Iterable[int]) -> str:
    """The shortest text that `parse_layers` reads back."""
    parts: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if parts and parts[-1][1] == layer - 1:
            parts[-1] = (parts[-1][0], layer)
        else:
            parts.append((layer, layer))
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def in_words(text: str) -> str:
    """`layer 2` or `layers 0-3,6`, of a text as `layers_text` gives it."""
    return f"layer {text}" if text.isdecimal() else f"layers {text}"


def by_layer(names: Sequence[str]) -> str:
    """What each layer has, in words: `conv`, or `conv (layers 0-1), mean (layer 2)`."""
    places: dict[str, list[int]] = {}
    for layer, name in enumerate(names):
        places.setdefault(name, []).append(layer)
    if len(places) == 1:
        return names[0]
    return ", ".join(f"{name} ({in_words(layers_text(layers))})" for name, layers in places.items())
