"""A run's configuration from all its sources, with the origin of every value.

Precedence: defaults < preset < file < environment < `sets`, `plugins`, `kv_policy`, `options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.layers import Layer, contradiction, flatten, merge, nest, normalized
from dba_core.config.overrides import from_environment, from_kv_policy, from_options, from_plugins, from_sets
from dba_core.config.presets import load_preset
from dba_core.config.run import RunConfig
from dba_core.config.toml_io import dump_toml, read_config_file
from dba_core.errors import ConfigError

DEFAULT_ORIGIN = "default"


@attrs.frozen(kw_only=True)
class LoadedConfig:
    """A configuration and, for the dotted key of every leaf, where its value came from."""

    config: RunConfig
    origins: dict[str, str]


def load_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    plugins: Sequence[str] = (),
    kv_policy: str | None = None,
    options: Mapping[str, tuple[str, Any]] | None = None,
) -> LoadedConfig:
    """Merge all sources. The environment is read only from `environ`; None reads none.

    options: arguments that stand for one key each, by their origin, `device=`: (`device`, `cpu`).

    Raises ConfigError with the dotted path, the value, what is allowed and which source set it.
    """
    settings: Layer = {}
    if preset is not None:
        settings = merge(settings, normalized(flatten(load_preset(preset), f"preset {preset}")))
    if file is not None:
        settings = merge(settings, normalized(flatten(read_config_file(file), f"file {file}")))
    if environ is not None:
        settings = merge(settings, normalized(from_environment(environ)))
    settings = _with_arguments(settings, sets, plugins, kv_policy, options or {})
    try:
        config = RunConfig.from_dict(nest(settings))
    except ConfigError as error:
        raise _with_origin(error, settings) from None
    return LoadedConfig(config=config, origins=_origins(config, settings))


def render_toml(loaded: LoadedConfig) -> str:
    """The configuration as TOML that reads back to the same, each value's origin beside it."""
    text_none = {
        path: setting.value for path, setting in flatten(RunConfig().to_dict(), "").items() if setting.value
    }
    spell_none = frozenset(".".join(path) for path in text_none)
    return dump_toml(loaded.config.to_dict(), loaded.origins, spell_none=spell_none)


def _with_arguments(
    below: Layer,
    sets: Sequence[str],
    plugins: Sequence[str],
    kv_policy: str | None,
    options: Mapping[str, tuple[str, Any]],
) -> Layer:
    """All arguments stand on one level: where they contradict each other, that is an error."""
    chosen, replaced = from_plugins(plugins)
    layers = [normalized(chosen), normalized(from_sets(sets)), from_kv_policy(kv_policy)]
    layers.append(from_options(options))
    for index, layer in enumerate(layers):
        for other in layers[:index]:
            for path in layer.keys() & other.keys():
                if layer[path].value != other[path].value:
                    raise contradiction((path, other[path]), (path, layer[path]))
    together = {path: setting for layer in layers for path, setting in layer.items()}
    return merge(below, together, replaced=replaced)


def _with_origin(error: ConfigError, settings: Layer) -> ConfigError:
    """The error with the source of the value that it is about."""
    for path, setting in settings.items():
        dotted = ".".join(path)
        if error.path and (dotted == error.path or dotted.startswith(f"{error.path}.")):
            return type(error)(f"{error.message} (set by {setting.origin})", path=error.path)
    return error


def _origins(config: RunConfig, settings: Layer) -> dict[str, str]:
    leaves = flatten(config.to_dict(), DEFAULT_ORIGIN)
    return {".".join(path): settings.get(path, leaf).origin for path, leaf in leaves.items()}
