"""Layers by number, as a text: `0-3` is 0, 1, 2, 3; `0-3,6` adds 6. The first layer is 0.

Called by `plugins`, which keeps choices per layer, by `layers` and `overrides`, which read them, and
wherever a result says what each layer has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dba_core.errors import ConfigError

_PART = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


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
