"""Exact types: True is no whole number, 3.7 is no whole number, "12" is no number, NaN is nothing at all.

The one conversion is a whole number where a number is wanted (1 -> 1.0). `exact_types` brings this into the
attrs classes, so that building one in Python and reading one from a file refuse the same values; the
converter uses `exact` for the options of plugins too.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.errors import ConfigError
from dba_core.serialization.validators import OneOf

#: In a field's metadata: all values that it takes, where its validator lists them.
ALLOWED = "allowed"
_WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}


def exact(value: Any, hint: Any) -> Any:
    """`value` if it is exactly of type `hint`, a whole number as float where a float is wanted.

    Raises ConfigError with the value and what is allowed; its path is that of the part inside `value`.
    """
    if hint is Any:
        return plain(value)
    inner = optional(hint)
    if inner is not None:
        return None if value is None else exact(value, inner)
    if typing.get_origin(hint) is dict:
        inner = typing.get_args(hint)[1]
        return table(value, plain if inner is Any else lambda item: exact(item, inner))
    if typing.get_origin(hint) is tuple:
        return _texts(value)
    if hint is float:
        return _number(value)
    wrong_bool = isinstance(value, bool) and hint is int
    if wrong_bool or not isinstance(value, hint):
        whole = hint is int and isinstance(value, float) and value.is_integer()
        raise ConfigError(
            mismatch(value, _WANTED.get(hint, f"a {hint.__name__}"), quote=hint is str)
            + (f"; write {int(value)}" if whole else "")
        )
    return value


def exact_types(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """The `field_transformer` of the config classes: every field checks its own annotation first of all."""
    hints = typing.get_type_hints(cls)
    checked = []
    for field in fields:
        hint = hints.get(field.name, field.type)
        own = [field.validator] if field.validator is not None else []
        listed = {ALLOWED: field.validator.allowed} if isinstance(field.validator, OneOf) else {}
        validator = attrs.validators.and_(_exact_validator(hint), *own)
        converter: Any = field.converter
        if hint is float or optional(hint) is float:
            converter = _widened
        elif typing.get_origin(hint) is tuple:
            converter = _list_to_tuple
        checked.append(
            field.evolve(validator=validator, converter=converter, metadata={**field.metadata, **listed})
        )
    return checked


def optional(hint: Any) -> Any:
    """X for `X | None`, else None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return inner[0] if len(inner) == 1 else None


def plain(value: Any) -> Any:
    """`value` if a TOML or JSON file could hold it: text, finite number, truth value, list, table or None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return [inside(str(index), plain, item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return plain_table(value)
    raise ConfigError(mismatch(value, "a text, number, truth value, list or table"))


def plain_table(value: Any) -> dict[str, Any]:
    """`value` if it is a table of plain values with texts as keys."""
    return table(value, plain)


def table(value: Any, check: typing.Callable[[Any], Any]) -> dict[str, Any]:
    """`value` if it is a table with texts as keys, each item as `check` gives it."""
    if not isinstance(value, Mapping):
        raise ConfigError(mismatch(value, "a table"))
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"the key {key!r} is {describe(key)}; allowed: a text")
    return {key: inside(key, check, item) for key, item in value.items()}


def describe(value: Any) -> str:
    """What a value is, in the words of a configuration file."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    for kind, words in (
        (bool, "a truth value"),
        (int, "a whole number"),
        (float, "a number with a fraction"),
        (str, "a text"),
        (Mapping, "a table"),
        ((list, tuple), "a list"),
        (type(None), "nothing"),
    ):
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"


def mismatch(value: Any, wanted: str, *, quote: bool = False) -> str:
    """The error text for a value of the wrong type."""
    hint = "; write it in quotes" if quote and isinstance(value, (int, float)) else ""
    return f"{value!r} is {describe(value)}; allowed: {wanted}{hint}"


def _number(value: Any) -> float:
    widened = _widened(value)
    if isinstance(widened, bool) or not isinstance(widened, float) or not math.isfinite(widened):
        raise ConfigError(mismatch(value, "a finite number"))
    return widened


def _widened(value: Any) -> Any:
    """A whole number as float, anything else (and a whole number beyond the floats) as it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023:
        return float(value)
    return value


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(mismatch(value, "a list of texts"))
    return tuple(inside(str(index), lambda item: exact(item, str), item) for index, item in enumerate(value))


def inside(key: str, check: typing.Callable[[Any], Any], value: Any) -> Any:
    """`check(value)`, its errors under `key`."""
    try:
        return check(value)
    except ConfigError as error:
        raise error.under(key) from None


def _exact_validator(hint: Any) -> typing.Callable[[Any, Any, Any], None]:
    def check(instance: Any, attribute: Any, value: Any) -> None:
        try:
            exact(value, hint)
        except ConfigError as error:
            raise error.under(attribute.name) from None

    return check


class OneText:
    """A class of several settings that plain data hold as one text: `parse` reads what `short` writes."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> OneText:
        """Raises ConfigError that names the part that is wrong."""
        raise NotImplementedError

    @property
    def short(self) -> str:
        """The text that `parse` reads back to an equal object."""
        raise NotImplementedError

    @classmethod
    def not_one_text(cls, value: Any) -> str:
        """The error text for plain data of another type."""
        raise NotImplementedError


def is_one_text(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, OneText)
