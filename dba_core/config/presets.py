"""The presets that ship with DBA: TOML files beside this one; the first line of each describes it."""

from __future__ import annotations

from importlib import resources
from typing import Any

import attrs

from dba_core.config.toml_io import parse_toml
from dba_core.errors import ConfigError, unknown


@attrs.frozen(kw_only=True)
class Preset:
    """A named configuration file and what it is for."""

    name: str
    summary: str


def list_presets() -> list[Preset]:
    """All presets by name, `default` first."""
    found = [Preset(name=name, summary=text.splitlines()[0].lstrip("# ")) for name, text in _texts().items()]
    return sorted(found, key=lambda preset: (preset.name != "default", preset.name))


def load_preset(name: str) -> dict[str, Any]:
    """The table of a preset. Raises ConfigError with the nearest names when there is none of that name."""
    texts = _texts()
    if name not in texts:
        raise ConfigError(unknown("preset", name, texts))
    return parse_toml(texts[name], source=f"preset {name}")


def _texts() -> dict[str, str]:
    folder = resources.files("dba_core.config") / "presets"
    return {
        path.name.removesuffix(".toml"): path.read_text(encoding="utf-8")
        for path in folder.iterdir()
        if path.name.endswith(".toml")
    }
