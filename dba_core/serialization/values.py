"""Plain data (TOML, JSON, options) to attrs classes and back, by one cattrs converter: exact types, every
error with its dotted path.

True is no whole number, 3.7 is no whole number, "12" is no number, NaN is nothing at all; the one conversion
is a whole number where a number is wanted (1 -> 1.0). `exact_types` brings this into the classes themselves,
so that building an object in Python and reading one from a file refuse the same values.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from cattrs import Converter
from cattrs.errors import StructureHandlerNotFoundError

from dba_core.errors import ConfigError, unknown
from dba_core.serialization.keys import OneText, optional, typed_fields, unknown_key

T = TypeVar("T")
_WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
}
_CONTAINERS = (typing.Literal, dict, list, tuple)


class UnreadableTypeError(ConfigError):
    """The field at `path` has a type that is never read from plain data; the message is the type's name."""


class _UnknownKeyError(ConfigError):
    """A table holds a key that its class has not."""


class _FieldsError(ConfigError):
    """Those of the fields of one class."""

    def __init__(self, errors: list[ConfigError]) -> None:
        super().__init__(errors[0].message, path=errors[0].path)
        self.errors = errors

    def under(self, prefix: str) -> ConfigError:
        return _FieldsError([error.under(prefix) for error in self.errors])


class Serializable:
    """Adds `from_dict` and `to_dict` to a config class."""

    __slots__ = ()

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """Read plain data. Raises ConfigError with the dotted path, the value and what is allowed."""
        return structure(data, cls)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back to an equal object; JSON and TOML can hold it."""
        plain: dict[str, Any] = unstructure(self)
        return plain

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """Plain data in any spelling that the class accepts -> in its own field names."""
        return data


def structure(data: Any, cls: type[T]) -> T:
    """Plain data -> an object of the attrs class `cls`; anything wrong is a ConfigError.

    Of several errors it is the first, the others in its text; a key that `cls` has elsewhere is named.
    """
    try:
        return _CONVERTER.structure(data, cls)
    except ConfigError as error:
        first, *others = (_placed(each, cls) for each in _single(error))
    also = "".join(f". Also {other}" for other in others)
    raise type(first)(first.message.rstrip(".") + also if others else first.message, path=first.path)


def unstructure(value: Any) -> Any:
    """An object of an attrs class -> plain data that `structure` reads back to an equal one."""
    return _CONVERTER.unstructure(value)


def exact(value: Any, hint: Any) -> Any:
    """`value` if it is exactly of type `hint`, a whole number as float where a float is wanted.

    Raises ConfigError with the value and what is allowed; its path is that of the part inside `value`.
    """
    return _walk(value, hint, exact)


def exact_types(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """The `field_transformer` of the config classes: every field checks its own annotation first of all."""
    hints = typing.get_type_hints(cls)
    return [
        field.evolve(
            converter=attrs.Converter(_exact_field(hints.get(field.name, field.type)), takes_field=True)
        )
        for field in fields
    ]


def plain(value: Any) -> Any:
    """`value` if a TOML or JSON file could hold it: text, finite number, truth value, list, table or None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return [inside(str(index), plain, item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _table(value, plain)
    raise ConfigError(mismatch(value, "a text, number, truth value, list or table"))


def inside(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    """`check(value)`, its errors under `key`."""
    try:
        return check(value)
    except ConfigError as error:
        raise error.under(key) from None


def mismatch(value: Any, wanted: str) -> str:
    """The error text for a value of the wrong type."""
    return f"{value!r} is {_described(value)}; allowed: {wanted}"


def _walk(value: Any, hint: Any, inner: Callable[[Any, Any], Any]) -> Any:
    """`value` as `hint` says, the items of containers as `inner` reads them."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return plain(value)
    present = optional(hint)
    if present is not None:
        return None if value is None else inner(value, present)
    if origin is typing.Literal:
        if not any(value == each and type(value) is type(each) for each in args):
            raise ConfigError(unknown("value", str(value), map(str, args)))
        return value
    if origin is dict:
        return _table(value, lambda item: inner(item, args[1] if args else Any))
    if origin in (list, tuple):
        one_each = origin is tuple and args[1:] not in ((), (...,))
        if not isinstance(value, (list, tuple)) or (one_each and len(value) != len(args)):
            of = f" of {len(args)}" if one_each else " of texts" if args[:1] == (str,) else ""
            raise ConfigError(mismatch(value, f"a list{of}"))
        hints = args if one_each else (args[:1] or (Any,)) * len(value)
        return origin(
            inside(str(at), functools.partial(_turned, inner, each), value[at])
            for at, each in enumerate(hints)
        )
    if hint is float:
        return _number(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(_wrong_type(value, hint))


def _turned(inner: Callable[[Any, Any], Any], hint: Any, value: Any) -> Any:
    return inner(value, hint)


def _is_exact(hint: Any) -> bool:
    """Whether `_walk` reads values of this type."""
    origin = typing.get_origin(hint) or hint
    return hint is Any or hint in _WANTED or optional(hint) is not None or origin in _CONTAINERS


def _from_plain(value: Any, hint: Any) -> Any:
    """A part of plain data: "none" is None where a number is meant, because TOML has no word for it."""
    if value == "none" and optional(hint) in (int, float, bool):
        return None
    return _walk(value, hint, _CONVERTER.structure)


def _one_text(value: Any, cls: type[OneText]) -> OneText:
    if isinstance(value, cls):
        return value
    if not isinstance(value, str):
        raise ConfigError(cls.not_one_text(value))
    return cls.parse(value)


def _made(data: Any, cls: type[Any]) -> Any:
    """An object of the attrs class from a table: its keys are checked before their values."""
    if isinstance(data, cls):
        return data
    fields = typed_fields(cls)
    for field, hint in fields:
        if (unreadable := _unreadable(hint)) is not None:
            name = unreadable.__qualname__ if isinstance(unreadable, type) else str(unreadable)
            raise UnreadableTypeError(name, path=field.name)
    prepared = cls.prepare(data) if issubclass(cls, Serializable) else data
    names = [field.name for field, _ in fields]
    if not isinstance(prepared, Mapping):
        raise ConfigError(mismatch(prepared, f"a table with {', '.join(names) or 'no keys'}"))
    for key in prepared:
        if key not in names:
            raise _UnknownKeyError(unknown("key", str(key), names), path=str(key))
    for field, _ in fields:
        if field.default is attrs.NOTHING and field.name not in prepared:
            raise ConfigError("is missing; give a value", path=field.name)
    given: dict[str, Any] = {}
    errors: list[ConfigError] = []
    for field, hint in fields:
        if field.name in prepared:
            try:
                given[field.alias or field.name] = _CONVERTER.structure(prepared[field.name], hint)
            except ConfigError as error:
                errors += _single(error.under(field.name))
            except (TypeError, ValueError) as error:  # as cattrs' own hooks raise: an enumeration's, say
                errors.append(ConfigError(_said(error), path=field.name))
    if errors:
        raise _FieldsError(errors)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:  # as attrs' own validators raise
        raise ConfigError(_said(error)) from error


def _said(error: Exception) -> str:
    return str(error.args[0] if error.args else type(error).__name__)


def _unreadable(hint: Any) -> Any:
    """The type inside `hint` that plain data are never read as; None where there is none."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if optional(hint) is not None:
        return _unreadable(optional(hint))
    if origin in (list, tuple, dict):
        within = map(_unreadable, args[1:] if origin is dict else (each for each in args if each is not ...))
        return next((each for each in within if each is not None), None)
    try:
        _CONVERTER.get_structure_hook(hint)
    except StructureHandlerNotFoundError as error:
        return error.type_
    return None


def _single(error: ConfigError) -> list[ConfigError]:
    return error.errors if isinstance(error, _FieldsError) else [error]


def _placed(error: ConfigError, cls: Any) -> ConfigError:
    """The error of an unknown key, seen from the class that the whole table is for."""
    text = unknown_key(cls, error.path) if isinstance(error, _UnknownKeyError) else None
    return error if text is None else ConfigError(text, path=error.path)


def _table(value: Any, check: Callable[[Any], Any]) -> dict[str, Any]:
    """`value` if it is a table with texts as keys, each item as `check` gives it."""
    if not isinstance(value, Mapping):
        raise ConfigError(mismatch(value, "a table"))
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"the key {key!r} is {_described(key)}; allowed: a text")
    return {key: inside(key, check, item) for key, item in value.items()}


def _number(value: Any) -> float:
    """A whole number as float; one beyond the floats is none."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023
    number = float(value) if is_whole else value
    if not isinstance(number, float) or not math.isfinite(number):
        raise ConfigError(mismatch(value, _WANTED[float]))
    return number


def _wrong_type(value: Any, hint: Any) -> str:
    if hint is int and isinstance(value, float) and value.is_integer():
        return f"{mismatch(value, _WANTED[int])}; write {int(value)}"
    quotes = "; write it in quotes" if hint is str and isinstance(value, (int, float)) else ""
    return mismatch(value, _WANTED.get(hint, f"a {hint.__name__}")) + quotes


def _described(value: Any) -> str:
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
        (types.NoneType, "nothing"),
    ):
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"


def _exact_field(hint: Any) -> Callable[[Any, Any], Any]:
    return lambda value, field: inside(field.name, lambda item: exact(item, hint), value)


def _make_converter() -> Converter:
    """cattrs reads and writes what is not exact here (enumerations, paths, sets) in its own way."""
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_func(_is_exact, _from_plain)
    for kind in _WANTED:  # of these cattrs has hooks that go before functions
        converter.register_structure_hook(kind, _from_plain)
    converter.register_structure_hook_func(attrs.has, _made)
    converter.register_structure_hook_func(_is_one_text, _one_text)
    converter.register_unstructure_hook_func(_is_one_text, lambda value: value.short)
    converter.register_unstructure_hook_func(
        _is_tuple, lambda items: [converter.unstructure(item) for item in items]
    )
    return converter


def _is_one_text(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, OneText)


def _is_tuple(hint: Any) -> bool:
    return hint is tuple or typing.get_origin(hint) is tuple


_CONVERTER = _make_converter()
