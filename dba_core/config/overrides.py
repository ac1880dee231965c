"""Settings from the command line and the environment.

    --set model.d_model=256          DBA__MODEL__D_MODEL=256
    --plugin summarizer=conv:kernel=3,bias=true
    --kv-policy "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"

A value is read as TOML; a bare word is a text. Called by `loading`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dba_core.config.converter import one_policy
from dba_core.config.layers import Layer, Path, Setting, flatten
from dba_core.config.toml_io import parse_toml
from dba_core.contracts import KINDS, Kind
from dba_core.errors import ConfigError, unknown

ENVIRONMENT_PREFIX = "DBA__"
_PLUGIN_FORM = "write --plugin kind=name or --plugin kind=name:key=value,key=value"


def from_sets(sets: Sequence[str]) -> Layer:
    """The layer of all `--set a.b=c`; of two with one key the last counts."""
    layer: Layer = {}
    for text in sets:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise ConfigError(f"--set {text!r} is not key=value; write it as in --set model.d_model=256")
        layer.update(_settings(path, value, "--set"))
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


def from_plugins(plugins: Sequence[str]) -> tuple[Layer, frozenset[Kind]]:
    """The layer of all `--plugin`, and the kinds whose choice it replaces as a whole."""
    layer: Layer = {}
    kinds: set[Kind] = set()
    for text in plugins:
        kind, name, options = parse_plugin(text)
        kinds.add(kind)
        layer = {path: setting for path, setting in layer.items() if path[1] != kind}
        layer[("plugins", kind, "name")] = Setting(name, "--plugin")
        layer.update(flatten(options, "--plugin", above=("plugins", kind, "options")))
    return layer, frozenset(kinds)


def from_kv_policy(kv_policy: str | None) -> Layer:
    """The layer of `--kv-policy`."""
    return {} if kv_policy is None else {("kv_policy",): Setting(kv_policy, "--kv-policy")}


def parse_plugin(text: str) -> tuple[Kind, str, dict[str, Any]]:
    """`kind=name`, `kind=name:key=value,...`, the name also as `distribution:name`."""
    given, equals, rest = text.partition("=")
    known: dict[str, Kind] = {kind: kind for kind in KINDS}
    if not equals or not rest.strip():
        raise ConfigError(f"--plugin {text!r} is not kind=name; {_PLUGIN_FORM}")
    if given.strip() not in known:
        raise ConfigError(f"--plugin {text!r}: {unknown('plugin kind', given.strip(), KINDS)}")
    kind = known[given.strip()]
    name, colon, options = rest.partition(":")
    second, more, after = options.partition(":")
    if second.strip(", ") and "=" not in second:
        name, colon, options = f"{name.strip()}:{second.strip()}", more, after
    if not name.strip(": ") or "=" in name or (colon and not options.strip()):
        raise ConfigError(f"--plugin {text!r} is not kind=name:key=value; {_PLUGIN_FORM}")
    return kind, name.strip(), dict(_option(part, text) for part in _split(options)) if colon else {}


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
    if path[0] == "kv_policy":
        if len(path) > 1:
            raise ConfigError(f"{one_policy(text.strip())} (set by {origin})", path=".".join(path))
        return {path: Setting(text.strip().strip("\"'"), origin)}
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{error.message} (set by {origin})", path=".".join(path)) from None
    if isinstance(value, dict) and value:
        return flatten(value, origin, above=path)
    return {path: Setting(value, origin)}


def _option(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--plugin {text!r}: {part.strip()!r} is not key=value; {_PLUGIN_FORM}")
    return key.strip(), parse_value(value)


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
