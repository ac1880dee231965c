"""The one cattrs converter: plain data (TOML, JSON) to config classes and back.

Exact about types (see `exact`), unknown keys refused with the nearest name, every error a ConfigError with
its dotted path.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError, IterableValidationError, StructureHandlerNotFoundError
from cattrs.gen import make_dict_structure_fn

from dba_core.errors import ConfigError, unknown
from dba_core.serialization.exact import (
    OneText,
    exact,
    inside,
    is_one_text,
    mismatch,
    optional,
    plain_table,
    table,
)
from dba_core.serialization.keys import unknown_key

T = TypeVar("T")


class _UnknownKeyError(ConfigError):
    """A table holds a key that its class has not."""


class UnreadableTypeError(ConfigError):
    """The field at `path` has a type that is never read from plain data; the message is the type's name."""


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
    """Plain data -> an object of the attrs class `cls`; anything wrong is a ConfigError."""
    try:
        return _CONVERTER.structure(data, cls)
    except (ConfigError, ClassValidationError, IterableValidationError) as error:
        found = _one_error(error, cls)
    except StructureHandlerNotFoundError as error:
        found = UnreadableTypeError(_type_name(error), path=_unreadable_field(cls))
    raise found


def _type_name(error: StructureHandlerNotFoundError) -> str:
    return error.type_.__qualname__ if isinstance(error.type_, type) else str(error.type_)


def _unreadable_field(cls: Any) -> str:
    """The first field of the attrs class whose type has no way to be read."""
    fields = attrs.fields(attrs.resolve_types(cls))
    return next((str(field.name) for field in fields if not _is_readable(field.type)), "")


def _is_readable(hint: Any) -> bool:
    try:
        _CONVERTER.get_structure_hook(hint)
    except StructureHandlerNotFoundError:
        return False
    return True


def _one_error(error: BaseException, cls: Any) -> ConfigError:
    """The first error of cattrs' tree, the others in its text; a key that `cls` has elsewhere is named."""
    first, *others = (_placed(each, cls) for each in _config_errors(error, ""))
    also = "".join(f". Also {other}" for other in others)
    return type(first)(first.message.rstrip(".") + also if others else first.message, path=first.path)


def _placed(error: ConfigError, cls: Any) -> ConfigError:
    """The error of an unknown key, seen from the class that the whole table is for."""
    text = unknown_key(cls, error.path) if isinstance(error, _UnknownKeyError) else None
    return error if text is None else ConfigError(text, path=error.path)


def unstructure(value: Any) -> Any:
    """A config object -> plain data."""
    return _CONVERTER.unstructure(value)


def _config_errors(error: BaseException, path: str) -> Iterator[ConfigError]:
    """The leaves of cattrs' error tree, each with its path from the root."""
    if isinstance(error, ConfigError):
        yield error.under(path)
    elif isinstance(error, ClassValidationError):
        noted, bare = error.group_exceptions()
        for inner, note in noted:
            yield from _config_errors(inner, _join(path, note.name))
        for inner in bare:
            yield from _config_errors(inner, path)
    elif isinstance(error, IterableValidationError):
        items, bare = error.group_exceptions()
        for inner, item in items:
            yield from _config_errors(inner, _join(path, str(item.index)))
        for inner in bare:
            yield from _config_errors(inner, path)
    elif isinstance(error, StructureHandlerNotFoundError):
        yield UnreadableTypeError(_type_name(error), path=path)
    else:
        text = error.args[0] if error.args else type(error).__name__
        yield ConfigError(str(text), path=path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _attrs_structure(cls: type[Any], converter: Converter) -> Callable[[Any, Any], Any]:
    """The structure function of one attrs class: keys are checked before values."""
    from_table = make_dict_structure_fn(cls, converter)
    names = [field.name for field in attrs.fields(cls) if field.init]
    required = [field.name for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]

    def read(data: Any, _: Any) -> Any:
        if isinstance(data, cls):
            return data
        prepared = cls.prepare(data) if issubclass(cls, Serializable) else data
        if not isinstance(prepared, Mapping):
            raise ConfigError(mismatch(prepared, f"a table with {', '.join(names) or 'no keys'}"))
        for key in prepared:
            if key not in names:
                raise _UnknownKeyError(unknown("key", str(key), names), path=str(key))
        for key in required:
            if key not in prepared:
                raise ConfigError("is missing; give a value", path=key)
        return from_table(prepared, cls)

    return read


def _one_text(data: Any, cls: type[OneText]) -> OneText:
    """From its text, or an object of it as it is."""
    if isinstance(data, cls):
        return data
    if not isinstance(data, str):
        raise ConfigError(cls.not_one_text(data))
    return cls.parse(data)


def _optional_number(hint: Any) -> Callable[[Any, Any], Any]:
    """`X | None` for a number: the text "none" is None, because TOML has no word for it."""
    inner = optional(hint)
    return lambda data, _: None if data == "none" else exact(data, inner | None)


def _sequence(hint: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    """list[X] and tuple[X, ...] from a list; a text is no list of letters."""
    origin, item = _origin(hint), typing.get_args(hint)[0]

    def read(data: Any, _: Any) -> Any:
        if not isinstance(data, (list, tuple)):
            raise ConfigError(mismatch(data, "a list"))
        return origin(
            inside(str(index), lambda v: converter.structure(v, item), value)
            for index, value in enumerate(data)
        )

    return read


def _table(hint: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    """dict[str, X] from a table."""
    item = typing.get_args(hint)[1]

    def read(data: Any, _: Any) -> Any:
        return table(data, lambda value: _structured(converter, value, item))

    return read


def _structured(converter: Converter, value: Any, item: Any) -> Any:
    """One item; its errors become one ConfigError, which the table puts under its key."""
    try:
        return converter.structure(value, item)
    except (ClassValidationError, IterableValidationError) as error:
        raise _one_error(error, item) from None


def _is_table(hint: Any) -> bool:
    return _origin(hint) is dict and typing.get_args(hint)[0] is str


def _is_sequence(hint: Any) -> bool:
    args = typing.get_args(hint)
    return (_origin(hint) is list and len(args) == 1) or (
        _origin(hint) is tuple and len(args) == 2 and args[1] is Ellipsis
    )


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint)


def _literal(data: Any, hint: Any) -> Any:
    allowed = typing.get_args(hint)
    if not any(data == value and type(data) is type(value) for value in allowed):
        raise ConfigError(unknown("value", str(data), map(str, allowed)))
    return data


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, exact)
    converter.register_structure_hook_factory(_is_sequence, _sequence)
    converter.register_structure_hook_func(lambda hint: _origin(hint) is typing.Literal, _literal)
    converter.register_structure_hook_factory(_is_table, _table)
    converter.register_structure_hook_func(
        lambda hint: hint == dict[str, Any], lambda data, _: plain_table(data)
    )
    converter.register_structure_hook_factory(
        lambda hint: optional(hint) in (int, float, bool), lambda hint: _optional_number(hint)
    )
    converter.register_structure_hook_factory(attrs.has, _attrs_structure)
    converter.register_structure_hook_func(is_one_text, _one_text)
    converter.register_unstructure_hook_func(is_one_text, lambda value: value.short)
    converter.register_unstructure_hook_func(
        lambda hint: (_origin(hint) or hint) is tuple,
        lambda items: [converter.unstructure(item) for item in items],
    )
    return converter


_CONVERTER = _make_converter()
