"""Configuration files: TOML or JSON, and the presets that ship with DBA (`presets/`)."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from dba_core.documents import parse_object, read_text
from dba_core.errors import ConfigError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@attrs.frozen(kw_only=True)
class Preset:
    """A named configuration file and what it is for."""

    name: str
    summary: str


def list_presets() -> list[Preset]:
    """All presets by name, `default` first. The first line of each file is its summary."""
    found = [
        Preset(name=name, summary=text.splitlines()[0].lstrip("# ")) for name, text in _presets().items()
    ]
    return sorted(found, key=lambda preset: (preset.name != "default", preset.name))


def load_preset(name: str) -> dict[str, Any]:
    """The table of a preset. Raises ConfigError with the nearest names when there is none of that name."""
    texts = _presets()
    if name not in texts:
        raise ConfigError(unknown("preset", name, texts))
    return parse_toml(texts[name], source=f"preset {name}")


def read_config_file(path: Path) -> dict[str, Any]:
    """The table in a `.toml` or `.json` file. Raises ConfigError that names the file and the line."""
    readers = {".toml": parse_toml, ".json": parse_json}
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file in it, such as resolved_config.json")
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path} is neither .toml nor .json; give a file with one of these endings")
    text = read_text(path, error=ConfigError, advice="Give the path of a .toml or .json file")
    return readers[path.suffix.lower()](text, source=str(path))


def parse_toml(text: str, *, source: str) -> dict[str, Any]:
    """The table that a TOML text holds. Raises ConfigError with `source` and the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def parse_json(text: str, *, source: str) -> dict[str, Any]:
    """The object that a JSON text holds; NaN, Infinity and a key given twice are refused."""
    return parse_object(text, source=source, error=ConfigError, advice="Repair it, or write it again")


def _presets() -> dict[str, str]:
    """Their texts by name."""
    files = (resources.files("dba_core.config") / "presets").iterdir()
    toml = [file for file in files if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in toml}
