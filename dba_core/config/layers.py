"""Settings from several sources, one over the other: defaults < preset < file < environment < arguments.

A layer is flat: the path of each leaf with its value and where it came from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from dba_core.config.long_sequence import FLAT_SPELLINGS
from dba_core.config.run import FORMER, PRESENT
from dba_core.contracts import Kind
from dba_core.errors import ConfigError
from dba_core.kinds import per_layer
from dba_core.registry.choice import layers_text, parse_layers

KeyPath = tuple[str, ...]


@attrs.frozen
class Setting:
    """One value and its origin, in words."""

    value: Any
    origin: str


Layer = dict[KeyPath, Setting]


def flatten(tree: Mapping[str, Any], origin: str, *, above: KeyPath = ()) -> Layer:
    """Every leaf of a nested table. An empty table is a leaf only where it says something: plugin options."""
    layer: Layer = {}
    for key, value in tree.items():
        path = (*above, str(key))
        is_options = path[-1] == "options" and _choice_of(path) == path[:-1]
        if isinstance(value, Mapping) and (value or not is_options):
            layer.update(flatten(value, origin, above=path))
        else:
            layer[path] = Setting(value, origin)
    return layer


def nest(layer: Layer) -> dict[str, Any]:
    """The nested table of a layer."""
    tree: dict[str, Any] = {}
    for path, setting in layer.items():
        table = tree
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = setting.value
    return tree


def normalized(layer: Layer) -> Layer:
    """The layer in field names alone: flat spellings, `plugins.KIND = NAME`, a moved key.

    Raises ConfigError when the layer contradicts itself, naming both spellings.
    """
    spelled: Layer = {}
    given: dict[KeyPath, KeyPath] = {}
    for path, setting in layer.items():
        target = _field_path(path)
        if target in spelled and spelled[target].value != setting.value:
            raise contradiction((given[target], spelled[target]), (path, setting))
        spelled[target], given[target] = setting, path
    return _moved(spelled)


def merge(below: Layer, above: Layer, *, replaced: Iterable[KeyPath] = ()) -> Layer:
    """`above` over `below`. A choice of a plugin with a new name (or in `replaced`) loses its options and
    record; layers that `above` chooses a plugin for leave the choices that `below` has for more layers.
    """
    below = _without_layers(below, above)
    dropped = {choice for choice in map(_choice_of, above) if choice and _renamed(choice, below, above)}
    dropped |= set(replaced)
    merged = {path: setting for path, setting in below.items() if _choice_of(path) not in dropped}
    for path, setting in above.items():
        beside = {other: kept for other, kept in merged.items() if not all(map(operator.eq, path, other))}
        merged = {**beside, path: setting}  # what is neither the same path, nor a table above it, nor in it
    return merged


def choice_path(kind: Kind, layers: str = "") -> KeyPath:
    """Where the choice of a kind stands, for all layers or for some."""
    return ("plugins", "layers", layers, kind) if layers else ("plugins", kind)


def contradiction(first: tuple[KeyPath, Setting], second: tuple[KeyPath, Setting]) -> ConfigError:
    """The error for two spellings of one setting with different values."""
    (path, one), (other, two) = first, second
    return ConfigError(
        f"{'.'.join(path)}={one.value!r} ({one.origin}) and {'.'.join(other)}={two.value!r} ({two.origin}) "
        "are one setting; give it once",
        path=".".join(path),
    )


def _moved(layer: Layer) -> Layer:
    """The summarizer's name from its former place to its present one; what is no name stays, for the
    configuration's error.
    """
    former, present = layer.get(FORMER), layer.get(PRESENT)
    if former is None or not isinstance(former.value, str | None):
        return layer
    rest = {path: setting for path, setting in layer.items() if path != FORMER}
    if former.value in (None, "auto"):
        return {**rest, PRESENT: present or Setting("auto", former.origin)}
    if present is not None and present.value not in (None, "auto", former.value):
        raise contradiction((PRESENT, present), (FORMER, former))
    return {**rest, PRESENT: former}


def _field_path(path: KeyPath) -> KeyPath:
    if len(path) == 2 and path[0] == "model" and path[1] in FLAT_SPELLINGS:
        return ("model", "train_long_seq", FLAT_SPELLINGS[path[1]])
    layers = _layers(path)  # spelled shortest; a wrong text stays, for the configuration's error
    path = _with_layers(path, layers) if layers else path
    return (*path, "name") if path == _choice_of(path) else path


def _with_layers(path: KeyPath, layers: frozenset[int]) -> KeyPath:
    return (*path[:2], layers_text(layers), *path[3:])


def _layers(path: KeyPath) -> frozenset[int]:
    """The layers of a path below `plugins.layers`; none where the text is wrong, and of any other path."""
    try:
        return parse_layers(path[2]) if path[:2] == ("plugins", "layers") and len(path) > 2 else frozenset()
    except ConfigError:
        return frozenset()


def _choice_of(path: KeyPath) -> KeyPath | None:
    """The path of the choice that a path belongs to, None for any other path."""
    length = 4 if path[:2] == ("plugins", "layers") else 2
    chooses = path[0] == "plugins" and len(path) >= length and path[length - 1] in per_layer()
    return path[:length] if chooses else None


def _without_layers(below: Layer, above: Layer) -> Layer:
    """`below` without the layers that `above` chooses a plugin of the same kind for."""
    chosen = {choice for choice in map(_choice_of, above) if choice and len(choice) == 4}
    taken: dict[str, frozenset[int]] = {}
    for choice in chosen:
        taken[choice[3]] = taken.get(choice[3], frozenset()) | _layers(choice)
    kept: Layer = {}
    for path, setting in below.items():
        own = _choice_of(path)
        layers = _layers(path) if own and own not in chosen else frozenset()
        left = layers - taken.get(path[3] if layers else "", frozenset())
        if left == layers:
            kept[path] = setting
        elif left:
            kept[_with_layers(path, left)] = setting
    return kept


def _renamed(choice: KeyPath, below: Layer, above: Layer) -> bool:
    old, new = below.get((*choice, "name")), above.get((*choice, "name"))
    return new is not None and (old is None or old.value != new.value)
