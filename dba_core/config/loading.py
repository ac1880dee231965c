"""A run's configuration from all its sources, with the origin of every value.

Precedence: defaults < preset < file < environment < `sets`, `plugins`, `kv_policy`, `options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.files import load_preset, read_config_file
from dba_core.config.layers import Layer, Setting, contradiction, flatten, merge, nest, normalized
from dba_core.config.overrides import from_environment, from_plugins, from_sets
from dba_core.config.run import RunConfig
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
    below: list[Layer] = []
    if preset is not None:
        below.append(flatten(load_preset(preset), f"preset {preset}"))
    if file is not None:
        below.append(flatten(read_config_file(file), f"file {file}"))
    if environ is not None:
        below.append(from_environment(environ))
    settings: Layer = {}
    for layer in below:
        settings = merge(settings, normalized(layer))
    chosen, replaced = from_plugins(plugins)
    single = {**(options or {}), **({} if kv_policy is None else {"kv_policy=": ("kv_policy", kv_policy)})}
    one_key_each = {tuple(key.split(".")): Setting(value, origin) for origin, (key, value) in single.items()}
    arguments = _together([normalized(chosen), normalized(from_sets(sets)), one_key_each])
    settings = merge(settings, arguments, replaced=replaced)
    try:
        config = RunConfig.from_dict(nest(settings))
    except ConfigError as error:
        raise _with_origin(error, settings) from None
    return LoadedConfig(config=config, origins=_origins(config, settings))


def _together(layers: Sequence[Layer]) -> Layer:
    """All arguments stand on one level: where they contradict each other, that is an error."""
    together: Layer = {}
    for layer in layers:
        for path, setting in layer.items():
            if path in together and together[path].value != setting.value:
                raise contradiction((path, together[path]), (path, setting))
            together[path] = setting
    return together


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
