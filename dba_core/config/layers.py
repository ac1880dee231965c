"""Settings from several sources, one over the other: defaults < preset < file < environment < command line.

A layer is flat: the path of each leaf with its value and where it came from. Called by `loading`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from dba_core.config.long_sequence import FLAT_SPELLINGS
from dba_core.contracts import KINDS, Kind
from dba_core.errors import ConfigError

Path = tuple[str, ...]
_PLUGIN_SUMMARIZER: Path = ("plugins", "summarizer", "name")
_MEM_SUMMARIZER: Path = ("model", "train_long_seq", "mem_summarizer")


@attrs.frozen
class Setting:
    """One value and its origin, in the words that `--print-config` shows."""

    value: Any
    origin: str


Layer = dict[Path, Setting]


def flatten(tree: Mapping[str, Any], origin: str, *, above: Path = ()) -> Layer:
    """Every leaf of a nested table. An empty table is a leaf only where it says something: plugin options."""
    layer: Layer = {}
    for key, value in tree.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and (value or not _is_options(path)):
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
    """The layer in field names alone: flat spellings, `plugins.KIND = NAME`, the linked summarizer resolved.

    Raises ConfigError when the layer contradicts itself, naming both spellings.
    """
    spelled: Layer = {}
    origin_of: dict[Path, Path] = {}
    for path, setting in layer.items():
        target = _field_path(path)
        if target in spelled and spelled[target].value != setting.value:
            raise contradiction((origin_of[target], spelled[target]), (path, setting))
        spelled[target] = setting
        origin_of[target] = path
    return _linked(spelled)


def merge(below: Layer, above: Layer, *, replaced: Iterable[Kind] = ()) -> Layer:
    """`above` over `below`. A plugin with a new name (or in `replaced`) loses those options and record."""
    dropped = {kind for kind in KINDS if _renamed(kind, below, above)} | set(replaced)
    merged = {
        path: setting
        for path, setting in below.items()
        if not (path[0] == "plugins" and len(path) > 2 and path[1] in dropped and path[2] != "name")
    }
    for path, setting in above.items():
        for other in [other for other in merged if _overlap(path, other)]:
            del merged[other]
        merged[path] = setting
    return merged


def contradiction(first: tuple[Path, Setting], second: tuple[Path, Setting]) -> ConfigError:
    """The error for two spellings of one setting with different values."""
    (path, one), (other, two) = first, second
    return ConfigError(
        f"{'.'.join(path)}={one.value!r} ({one.origin}) and {'.'.join(other)}={two.value!r} ({two.origin}) "
        "are one setting; give it once",
        path=".".join(path),
    )


def _linked(layer: Layer) -> Layer:
    """`plugins.summarizer.name` and `model.train_long_seq.mem_summarizer` set each other."""
    plugin, memory = layer.get(_PLUGIN_SUMMARIZER), layer.get(_MEM_SUMMARIZER)
    if plugin is None and memory is None:
        return layer
    stated = [setting for setting in (plugin, memory) if setting and setting.value not in (None, "auto")]
    if plugin and memory and len(stated) == 2 and plugin.value != memory.value:
        raise contradiction((_PLUGIN_SUMMARIZER, plugin), (_MEM_SUMMARIZER, memory))
    if stated:
        return {**layer, _PLUGIN_SUMMARIZER: stated[0], _MEM_SUMMARIZER: stated[-1]}
    origin = next(setting.origin for setting in (plugin, memory) if setting)
    return {**layer, _PLUGIN_SUMMARIZER: Setting("auto", origin), _MEM_SUMMARIZER: Setting(None, origin)}


def _field_path(path: Path) -> Path:
    if len(path) == 2 and path[0] == "model" and path[1] in FLAT_SPELLINGS:
        return ("model", "train_long_seq", FLAT_SPELLINGS[path[1]])
    if len(path) == 2 and path[0] == "plugins" and path[1] in KINDS:
        return (*path, "name")
    return path


def _is_options(path: Path) -> bool:
    return len(path) == 3 and path[0] == "plugins" and path[2] == "options"


def _renamed(kind: Kind, below: Layer, above: Layer) -> bool:
    old, new = below.get(("plugins", kind, "name")), above.get(("plugins", kind, "name"))
    return new is not None and (old is None or old.value != new.value)


def _overlap(path: Path, other: Path) -> bool:
    """One is the other or a table above it."""
    shorter = min(len(path), len(other))
    return path[:shorter] == other[:shorter]
