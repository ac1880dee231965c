"""The options of a request: read from its fields, checked once, and written back as a command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs
import pytest

from dba_core.command import (
    argument,
    command_line,
    fields_of,
    given_flags,
    group,
    make_request,
    option,
    summary_of,
)
from dba_core.errors import UsageError


@attrs.frozen(kw_only=True)
class Where:
    place: str = argument()
    device: str | None = option(None, help="Where.")


@attrs.frozen(kw_only=True)
class Ask:
    where: Where = group()
    lengths: tuple[int, ...] = option((1, 2), help="Lengths.", least=1, most=9)
    share: float = option(0.5, help="Share.", least=0)
    mode: str = option("a", help="Mode.", allowed=("a", "b"))
    policies: tuple[str, ...] = option((), help="Policies.", name="policy", repeated=True)
    file: Path | None = option(None, help="A file.")
    flex: bool = option(True, help="Flex.")
    check: bool = option(False, help="Check.")
    bos: bool | None = option(None, help="BOS.")


def test_fields_say_all_about_an_option() -> None:
    found = {field.flag: field for field in fields_of(Ask)}
    assert list(found) == [
        "place", "--device", "--lengths", "--share", "--mode", "--policy", "--file", "--flex", "--check",
        "--bos",
    ]  # fmt: skip
    assert (found["place"].path, found["place"].default) == (("where", "place"), attrs.NOTHING)
    assert (found["--lengths"].kind, found["--lengths"].is_list) == (int, True)
    assert (found["--bos"].kind, found["--bos"].optional) == (bool, True)
    assert found["--policy"].key == "policies"


def test_a_request_becomes_the_line_that_makes_it() -> None:
    plain = Ask(where=Where(place="here"))
    assert command_line("bench.it", plain) == "dba bench it here"
    ask = Ask(
        where=Where(place="a b", device="cpu"),
        lengths=[3, 4],
        mode="b",
        policies=("x", "y"),
        file=Path("f"),
        flex=False,
        check=True,
        bos=False,
    )
    assert shlex.split(command_line("it", ask)) == [
        "dba", "it", "a b", "--device", "cpu", "--lengths", "3,4", "--mode", "b", "--policy", "x", "--policy",
        "y", "--file", "f", "--no-flex", "--check", "--no-bos",
    ]  # fmt: skip
    assert given_flags(plain) == ["place"]
    values = {field.key: getattr(ask, field.key, None) for field in fields_of(Ask)}
    assert make_request(Ask, {**values, "place": "a b", "device": "cpu"}) == ask


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lengths": (0,)}, "lengths: 0 is out of range; allowed: numbers from 1 to 9"),
        ({"lengths": (3, 10)}, "10"),
        ({"share": -0.1}, ">= 0"),
        ({"share": float("nan")}, ">= 0"),
        ({"mode": "c"}, "Allowed: a, b"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_python_too(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ask(where=Where(place="x"), **wrong)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_what_no_option_can_be_is_an_error_of_the_author() -> None:
    @attrs.frozen(kw_only=True)
    class Bare:
        x: int = 3

    @attrs.frozen(kw_only=True)
    class Odd:
        x: object = option(None, help="?")

    with pytest.raises(TypeError, match="neither"):
        list(fields_of(Bare))
    with pytest.raises(TypeError, match="allowed: str, int"):
        list(fields_of(Odd))


def test_a_summary_is_the_first_line() -> None:
    assert summary_of("One line.\n\nMore.") == "One line"
    assert summary_of(None) == ""
