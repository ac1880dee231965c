"""Settings as texts, from the arguments of `load_config` and the environment.

    sets=["model.d_model=256"]          DBA__MODEL__D_MODEL=256
    plugins=["summarizer=conv:kernel=3,bias=true", "summarizer@layers.0-3=mean"]
    kv_policy="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"

A value is read as TOML; a bare word is a text. The argument's name is the origin: `sets=`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from dba_core.config.files import parse_toml
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.layers import Layer, Path, Setting, choice_path, flatten
from dba_core.contracts import Kind
from dba_core.errors import ConfigError, unknown
from dba_core.kinds import per_layer
from dba_core.registry.choice import layers_text, parse_layers

ENVIRONMENT_PREFIX = "DBA__"
_PLUGIN_FORM = "write plugins=['kind=name'] or plugins=['kind=name:key=value,key=value']"


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


def from_plugins(plugins: Sequence[str]) -> tuple[Layer, frozenset[Path]]:
    """The layer of all choices of plugins, and the choices (`choice_path`) that it replaces as a whole.

    Raises ConfigError for two choices of one layer.
    """
    layer: Layer = {}
    given: dict[Path, str] = {}
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


def _settings(path: Path, text: str, origin: str) -> Layer:
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
