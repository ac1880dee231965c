"""What a command of `dba` is made of: a request whose fields say how they are asked for, and a `run`.

    @attrs.frozen(kw_only=True)
    class Request:
        lengths: tuple[int, ...] = option((4096,), help="Cached tokens.", unit="N", least=1)

    def run(request: Request, reporter: Reporter) -> Report: ...

The command line builds its options from these fields, and a library user makes the request and calls `run`.
A request's module imports nothing heavy, so that help and completion cost nothing. No torch.
"""

from __future__ import annotations

import shlex
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from dba_core.contracts import NoOptions
from dba_core.errors import UsageError, unknown
from dba_core.report import Report, Reporter

#: Where a field's metadata hold its `Option`.
OPTION = "dba_option"
RequestT = TypeVar("RequestT")


@attrs.frozen(kw_only=True)
class Command(Generic[RequestT]):
    """A command as its hook returns it.

    name: as typed after `dba`; dots make groups: `bench.decode` is `dba bench decode`. contract: the number
    that the plugin was written for. summary: one line; it begins the docstring of the module that the entry
    point names, where `dba --help` reads it without importing anything. run: its docstring is the help.
    draws: its reports have pictures, for `--plot`. quick: a request that takes a moment and needs nothing,
    which the contract suite tries; None where there is no such request.
    """

    name: str
    contract: int
    summary: str
    request_class: type[RequestT]
    run: Callable[[RequestT, Reporter], Report]
    draws: bool = False
    quick: RequestT | None = None

    @property
    def options_class(self) -> type[NoOptions]:
        """What it is asked for stands in its request."""
        return NoOptions


@attrs.frozen(kw_only=True)
class Option:
    """How a field is asked for.

    help: one sentence. without: what holds where it is not given and has no default of its own. name: on the
    command line, where it is not the field's. positional: an argument. unit: what a value is, as in N or
    PATH. least, most: of every number. allowed: all values. repeated: of a tuple, given one by one; else its
    values stand in one text with commas. offers: what a shell offers for it (see `dba_cli.completion`).
    """

    help: str = ""
    without: str = ""
    name: str = ""
    positional: bool = False
    unit: str = ""
    least: float | None = None
    most: float | None = None
    allowed: tuple[str, ...] = ()
    repeated: bool = False
    offers: str = ""

    def problem(self, value: Any) -> str | None:
        """What is wrong with one value, None where nothing is."""
        if self.allowed and value not in self.allowed:
            return unknown("value", str(value), self.allowed)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        low, high = self.least, self.most
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            return f"{value!r} is out of range; allowed: numbers {self.range_text}"
        return None

    @property
    def range_text(self) -> str:
        """`from 1 to 1024`, `>= 1`."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        return f"<= {self.most:g}" if self.least is None else f">= {self.least:g}"


def option(default: Any = attrs.NOTHING, **how: Any) -> Any:
    """A field that is an option; how: see `Option`. What its value may not be raises UsageError."""
    spec = Option(**how)

    def check(instance: Any, attribute: Any, value: Any) -> None:
        for each in value if isinstance(value, tuple) else (value,):
            problem = None if each is None else spec.problem(each)
            if problem is not None:
                raise UsageError(f"{attribute.name}: {problem}")

    def as_tuple(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return attrs.field(
        default=default, kw_only=True, metadata={OPTION: spec}, validator=check, converter=as_tuple
    )


def argument(**how: Any) -> Any:
    """A field that is given by its place."""
    return option(positional=True, **how)


def group(factory: Any = attrs.NOTHING) -> Any:
    """A field whose class has options of its own, which stand among the others."""
    default = attrs.NOTHING if factory is attrs.NOTHING else attrs.Factory(factory)
    return attrs.field(default=default, kw_only=True)


@attrs.frozen(kw_only=True)
class Field:
    """One option of a request. path: the names of the fields that lead to it. kind: of one value. is_list: of
    a tuple. default: `attrs.NOTHING` where it must be given. flag: its name with dashes, or the argument's.
    """

    path: tuple[str, ...]
    flag: str
    kind: type
    is_list: bool
    optional: bool
    default: Any
    option: Option

    @property
    def key(self) -> str:
        """Its name, which no other option of the request has."""
        return self.path[-1]


def fields_of(request_class: type) -> Iterator[Field]:
    """The options of a request, those of its groups in their places.

    Raises TypeError for a field that is neither, or whose type no option has: an error of the author.
    """
    hints = typing.get_type_hints(request_class)
    for attribute in attrs.fields(request_class):
        hint, spec = hints[attribute.name], attribute.metadata.get(OPTION)
        where = f"{request_class.__name__}.{attribute.name}"
        if spec is None and isinstance(hint, type) and attrs.has(hint):
            for inner in fields_of(hint):
                yield attrs.evolve(inner, path=(attribute.name, *inner.path))
            continue
        if spec is None:
            raise TypeError(f"{where} is made by neither option() nor group()")
        parts = [each for each in typing.get_args(hint) if each is not type(None)]
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kind = (parts[0] if len(parts) == 1 else None) if optional else hint
        is_list = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if is_list else kind
        if kind not in (str, int, float, bool, Path) or (is_list and kind is bool):
            raise TypeError(
                f"{where}: no option has the type {hint}; allowed: str, int, float, bool, Path, tuples"
            )
        name = spec.name or attribute.name.replace("_", "-")
        yield Field(
            path=(attribute.name,),
            flag=name if spec.positional else f"--{name}",
            kind=kind,
            is_list=is_list,
            optional=optional,
            default=attribute.default,
            option=spec,
        )


def value_of(request: Any, field: Field) -> Any:
    """The request's value for this option."""
    for name in field.path:
        request = getattr(request, name)
    return request


def make_request(request_class: type[RequestT], values: typing.Mapping[str, Any]) -> RequestT:
    """A request from values by `Field.key`. Raises UsageError for a value that is not allowed."""
    hints, fields = typing.get_type_hints(request_class), attrs.fields_dict(request_class)  # type: ignore[arg-type]
    given = {
        name: values[name] if OPTION in field.metadata else make_request(hints[name], values)
        for name, field in fields.items()
    }
    return request_class(**given)


def given_flags(request: Any) -> list[str]:
    """The options whose value is not their default."""
    return [field.flag for field in fields_of(type(request)) if value_of(request, field) != field.default]


def command_line(name: str, request: Any) -> str:
    """What a shell is given to run the command `name` with this request: all that is not a default."""
    places: list[str] = []
    options: list[str] = []
    for field in fields_of(type(request)):
        value = value_of(request, field)
        if field.option.positional:
            places += [] if value is None else [str(value)]
        elif value != field.default:
            options += _words(field, value)
    return shlex.join(["dba", *name.split("."), *places, *options])


def _words(field: Field, value: Any) -> list[str]:
    if field.kind is bool:
        return [field.flag if value else field.flag.replace("--", "--no-", 1)]
    if field.is_list and field.option.repeated:
        return [word for each in value for word in (field.flag, str(each))]
    return [field.flag, ",".join(map(str, value)) if field.is_list else str(value)]


def summary_of(docstring: str | None) -> str:
    """Its first line, without the full stop."""
    return (docstring or "").strip().partition("\n")[0].strip().removesuffix(".")
