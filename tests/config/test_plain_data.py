"""Plain data <-> attrs classes that are no part of a configuration: the options of plugins."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from dba_core.errors import ConfigError
from dba_core.serialization.values import UnreadableTypeError, structure, unstructure


@attrs.frozen
class Inner:
    x: int
    y: float = 0.5


@attrs.frozen
class Outer:
    pair: tuple[int, str] = (0, "")
    many: tuple[float, ...] = ()
    inner: list[Inner] = attrs.field(factory=list)
    named: dict[str, Inner] = attrs.field(factory=dict)
    bare: list = attrs.field(factory=list)  # type: ignore[type-arg]
    mode: Literal["a", 1] = "a"
    known: int | None = None
    derived: int = attrs.field(init=False, default=7)


def test_every_type_is_read_and_written_back() -> None:
    data: dict[str, Any] = {
        "pair": [1, "b"],
        "many": [1, 2.5],
        "inner": [{"x": 1, "y": 2}],
        "named": {"k": {"x": 3}},
        "bare": [1, "a", [True]],
        "mode": 1,
        "known": "none",
    }
    built = structure(data, Outer)
    assert built == Outer(
        pair=(1, "b"),
        many=(1.0, 2.5),
        inner=[Inner(1, 2.0)],
        named={"k": Inner(3)},
        bare=[1, "a", [True]],
        mode=1,
    )
    plain = unstructure(built)
    assert plain["inner"] == [{"x": 1, "y": 2.0}]
    assert "derived" not in plain
    assert structure(plain, Outer) == built


@pytest.mark.parametrize(
    ("data", "path", "text"),
    [
        ({"pair": [1]}, "pair", "[1] is a list; allowed: a list of 2"),
        ({"pair": [1, 2]}, "pair.1", "2 is a whole number; allowed: a text; write it in quotes"),
        ({"inner": [{"x": 1}, {"y": 1}]}, "inner.1.x", "is missing; give a value"),
        ({"named": {"k": {"x": 1.0}}}, "named.k.x", "allowed: a whole number; write 1"),
        ({"mode": True}, "mode", "unknown value 'True'"),
        ({"derived": 1}, "derived", "unknown key 'derived'"),
    ],
)
def test_an_error_names_its_place(data: dict[str, Any], path: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure(data, Outer)
    assert caught.value.path == path
    assert text in str(caught.value)


def test_every_error_of_a_nested_class_is_told_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        structure({"inner": [{"x": "a", "y": "b"}], "known": 1.5}, Outer)
    assert caught.value.path == "inner.0.x"
    assert "Also inner.0.y: 'b' is a text" in str(caught.value)
    assert "Also known: 1.5 is a number with a fraction" in str(caught.value)


class Device: ...


def test_a_type_that_no_file_holds_is_named() -> None:
    @attrs.frozen
    class Odd:
        pair: tuple[int, Device] | None = None

    with pytest.raises(UnreadableTypeError, match="pair: Device"):
        structure({}, Odd)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Others:
    colour: Colour = Colour.RED
    folder: Path = Path("here")
    names: set[str] = attrs.field(factory=set)
    colours: list[Colour] = attrs.field(factory=list)


def test_enumerations_paths_and_sets_are_read_and_written() -> None:
    plain = {"colour": "blue", "folder": "there", "names": ["a"], "colours": ["red", "blue"]}
    built = structure(plain, Others)
    assert built == Others(Colour.BLUE, Path("there"), {"a"}, [Colour.RED, Colour.BLUE])
    assert structure(unstructure(built), Others) == built
    with pytest.raises(ConfigError, match="'green' is not a valid Colour") as caught:
        structure({"colour": "green"}, Others)
    assert caught.value.path == "colour"
    with pytest.raises(ConfigError, match="'green' is not a valid Colour") as caught:
        structure({"colours": ["red", "green"]}, Others)
    assert caught.value.path.startswith("colours")
