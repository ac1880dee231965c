"""A plugin's options: plain data from TOML or `--plugin kind=name:key=value` to its attrs class and back.

Called by the selection. The converter is the configuration's, so types are exact here too.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.contracts import Kind
from dba_core.errors import ConfigError, PluginError, unknown
from dba_core.registry.contain import Failure, contain
from dba_core.registry.loading import LoadedPlugin
from dba_core.registry.surroundings import kept_surroundings
from dba_core.serialization.converter import UnreadableTypeError, structure, unstructure

_FIELD_TYPES = (
    "int, float, str, bool, Literal, list[X], tuple[X, ...], dict[str, X] and attrs classes of these, and "
    "X | None"
)


def structure_options(loaded: LoadedPlugin, options: Mapping[str, Any]) -> Any:
    """An object of the plugin's options class. Raises ConfigError under `plugins.KIND.options`."""
    info, options_class = loaded.info, loaded.plugin.options_class
    path = f"plugins.{info.kind}.options"
    allowed = [field.name for field in attrs.fields(options_class) if field.init]
    for key in options:
        if not allowed:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ConfigError(
                f"{info.kind} {info.name!r} takes no options, got {given}; leave them out", path=path
            )
        if key not in allowed:
            raise ConfigError(
                unknown(f"option of {info.kind} {info.name!r}:", key, allowed), path=f"{path}.{key}"
            )
    with kept_surroundings():
        built = contain(lambda: structure(dict(options), options_class))
    if not isinstance(built, Failure):
        return built
    if isinstance(built.error, UnreadableTypeError):
        raise PluginError(
            f"{info.who} cannot be used: field {built.error.path!r} of its options class is of type "
            f"{built.error.message}; allowed: {_FIELD_TYPES}. Report it to the plugin's author."
        ) from built.error
    if isinstance(built.error, ConfigError):
        raise built.error.under(path)
    raise PluginError(f"the options of {info.who} cannot be read: {built}") from built.error


def refuse_options_of_auto(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options without a plugin that they belong to."""
    if options:
        raise ConfigError(
            f"{dict(options)!r} belongs to no plugin while the name is 'auto'; choose one by name",
            path=f"plugins.{kind}.options",
        )


def options_to_dict(options: Any) -> dict[str, Any]:
    """Plain data that `structure_options` reads back to equal options."""
    plain: dict[str, Any] = unstructure(options)
    return plain


def describe_options(options_class: type[Any]) -> list[tuple[str, str, Any]]:
    """(name, type, default) of each option, for `dba plugins info`."""
    defaults = options_to_dict(options_class())
    return [
        (field.name, _type_text(field.type), defaults.get(field.name))
        for field in attrs.fields(options_class)
    ]


def _type_text(hint: Any) -> str:
    simple = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if simple else str(hint)
