"""A run's configuration from all its sources, with the origin of every value.

Precedence: defaults < preset < file < environment < arguments, which are texts:

    sets=["model.d_model=256"]          DBA__MODEL__D_MODEL=256
    plugins=["summarizer=conv:kernel=3,bias=true", "summarizer@layers.0-3=mean"]
    kv_policy="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"

A value is read as TOML; a bare word is a text. The argument's name is the origin: `sets=`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.layers import (
    KeyPath,
    Layer,
    Setting,
    choice_path,
    contradiction,
    flatten,
    merge,
    nest,
    normalized,
)
from dba_core.config.run import RunConfig
from dba_core.contracts import Kind
from dba_core.documents import parse_object, read_text
from dba_core.errors import ConfigError, unknown
from dba_core.kinds import per_layer
from dba_core.registry.choice import layers_text, parse_layers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_ORIGIN = "default"
ENVIRONMENT_PREFIX = "DBA__"
_PLUGIN_FORM = "write plugins=['kind=name'] or plugins=['kind=name:key=value,key=value']"


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
    leaves = flatten(config.to_dict(), DEFAULT_ORIGIN)
    origins = {".".join(path): settings.get(path, leaf).origin for path, leaf in leaves.items()}
    return LoadedConfig(config=config, origins=origins)


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


def from_sets(sets: Sequence[str]) -> Layer:
    """The layer of all texts `a.b=c`; of two with one key the last counts."""
    layer: Layer = {}
    for text in sets:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise ConfigError(f"sets=[{text!r}] is not key=value; write it as in sets=['model.d_model=256']")
        layer.update(_settings(path, value, "sets="))
    return layer


def from_environment(environ: Mapping[str, str]) -> Layer:
    """The layer of all variables DBA__SECTION__KEY."""
    layer: Layer = {}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        path = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
        if not all(path):
            raise ConfigError(f"environment variable {name} names no key; write it as in DBA__MODEL__D_MODEL")
        layer.update(_settings(path, environ[name], f"environment {name}"))
    return layer


def from_plugins(plugins: Sequence[str]) -> tuple[Layer, frozenset[KeyPath]]:
    """The layer of all choices of plugins, and the choices (`choice_path`) that it replaces as a whole.

    Raises ConfigError for two choices of one layer.
    """
    layer: Layer = {}
    given: dict[KeyPath, str] = {}
    for text in plugins:
        each = parse_plugin(text)
        path = choice_path(each.kind, each.layers)
        if given.setdefault(path, text) != text:
            raise ConfigError(
                f"plugins=[{given[path]!r}] and plugins=[{text!r}] choose the same; give one of them"
            )
        layer.update(flatten({"name": each.name}, "plugins=", above=path))
        layer.update(flatten(each.options, "plugins=", above=(*path, "options")))
    return layer, frozenset(given)


@attrs.frozen(kw_only=True)
class PluginArgument:
    """What the text of one choice says. layers: "" is every layer without a choice of its own."""

    kind: Kind
    name: str
    options: dict[str, Any] = attrs.field(factory=dict)
    layers: str = ""


def parse_plugin(text: str) -> PluginArgument:
    """`kind=name`, `kind=name:key=value,...`, the name also as `distribution:name`, the kind also as
    `kind@layers.0-3`.
    """
    target, equals, rest = text.partition("=")
    if not equals or not rest.strip():
        raise ConfigError(f"plugins=[{text!r}] is not kind=name; {_PLUGIN_FORM}")
    kind, at, place = (part.strip() for part in target.partition("@"))
    if kind not in per_layer():
        raise ConfigError(f"plugins=[{text!r}]: {unknown('plugin kind', kind, per_layer())}")
    word, _, numbers = (part.strip() for part in place.partition("."))
    if at and word != "layers":
        raise ConfigError(f"plugins=[{text!r}]: {place!r} is no place; write it as in {kind}@layers.0-3=name")
    try:
        layers = layers_text(parse_layers(numbers)) if at else ""
    except ConfigError as error:
        raise ConfigError(f"plugins=[{text!r}]: {error.message}") from None
    name, colon, options = rest.partition(":")
    second, more, after = options.partition(":")
    if second.strip(", ") and "=" not in second:
        name, colon, options = f"{name.strip()}:{second.strip()}", more, after
    if not name.strip(": ") or "=" in name or (colon and not options.strip()):
        raise ConfigError(f"plugins=[{text!r}] is not kind=name:key=value; {_PLUGIN_FORM}")
    given = {}
    for part in _split(options) if colon else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"plugins=[{text!r}]: {part.strip()!r} is not key=value; {_PLUGIN_FORM}")
        given[key.strip()] = parse_value(value)
    return PluginArgument(kind=kind, name=name.strip(), options=given, layers=layers)


def parse_value(text: str) -> Any:
    """A TOML value; anything else is a text as it stands, unless it begins like a string, list or table."""
    stripped = text.strip()
    structured = stripped[:1] in ("'", '"', "[", "{")
    if "#" in stripped and not structured:
        return stripped
    try:
        table = parse_toml(f"value = {stripped}", source=repr(text))
    except ConfigError as error:
        if structured:
            raise ConfigError(f"{error.message}; a text that begins like this must be quoted") from None
        return stripped
    value = table["value"]
    return value if len(table) == 1 and isinstance(value, (str, bool, int, float, list, dict)) else stripped


def _settings(path: KeyPath, text: str, origin: str) -> Layer:
    where = ".".join(path)
    if path[0] == "kv_policy" and len(path) > 1:
        raise ConfigError(f"{KVCachePolicy.not_one_text(text.strip())} (set by {origin})", path=where)
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{error.message} (set by {origin})", path=where) from None
    is_table = isinstance(value, dict) and value
    return flatten(value, origin, above=path) if is_table else {path: Setting(value, origin)}


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that stand outside quotes, brackets and braces."""
    part, quote, depth = "", "", 0
    for letter in text:
        if letter == "," and not quote and depth == 0:
            yield part
            part = ""
            continue
        part += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
    yield part


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
