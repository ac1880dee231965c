"""Stop texts: whatever the token borders, the result ends before the stop, and nothing is shown too early."""

from __future__ import annotations

import pytest

from dba_core.data.tokenizers import ByteTokenizer
from dba_core.generation.sampling import StopWatch

pytestmark = pytest.mark.torch


class Pieces:
    """A text stream over a table of pieces; nothing is ever held back."""

    pending = False

    def __init__(self, *table: str) -> None:
        self._table = table

    def push(self, ids: list[int]) -> str:
        return "".join(self._table[i] for i in ids)

    def finish(self) -> str:
        return ""


def run(watch: StopWatch, tokens: list[int]) -> tuple[list[list[int]], list[int]]:
    """What each push gave until the stop, and everything together."""
    given = []
    for token in tokens:
        given.append(watch.push(token))
        if watch.stopped:
            break
    rest = watch.finish()
    return given, [t for part in given for t in part] + rest


def test_stop_inside_single_characters_is_held_back_until_settled() -> None:
    watch = StopWatch(["END"], ByteTokenizer().stream())
    given, result = run(watch, list(b"aENbENDc"))
    assert given == [[97], [], [], [*b"ENb"], [], [], []]
    assert bytes(result) == b"aENb"
    assert watch.stopped


@pytest.mark.parametrize(
    ("table", "tokens", "kept"),
    [
        (
            ("ab", "cE", "NDx", "y"),
            [0, 1, 2, 3],
            [0],
        ),  # straddles two tokens; the token before it goes as well
        (("ab", "END", "y"), [0, 1, 2], [0]),  # is one token
        (("abENDcd", "y"), [0, 1], []),  # inside one token
        (("ab", "E", "ND"), [0, 1, 2], [0]),
        (("E", "E", "END"), [0, 1, 2], [0, 1]),
        (("EN", "EN", "D"), [0, 1, 2], [0]),
        (("ab", "EN"), [0, 1], [0, 1]),  # never complete
    ],
)
def test_stop_and_token_borders(table: tuple[str, ...], tokens: list[int], kept: list[int]) -> None:
    watch = StopWatch(["END"], Pieces(*table))
    assert run(watch, tokens)[1] == kept
    assert watch.stopped is ("END" in "".join(table[t] for t in tokens))


@pytest.mark.parametrize("table", [("a", "b", "c", "d"), ("ab", "c", "d"), ("a", "bcd"), ("abcd",)])
def test_of_several_stops_the_first_complete_one_counts_at_any_token_border(table: tuple[str, ...]) -> None:
    watch = StopWatch(["bcd", "c", "abcde"], Pieces(*table))
    result = run(watch, list(range(len(table))))[1]
    text = "".join(table[t] for t in result)
    assert watch.stopped
    assert text == {"a": "ab", "ab": "ab"}.get(table[0], "") if len(table) != 2 else "a"


def test_half_a_character_that_belongs_to_the_stop_is_dropped() -> None:
    watch = StopWatch(["é"], ByteTokenizer().stream())
    given, result = run(watch, list("aé".encode()))
    assert given == [[97], [], []]
    assert bytes(result) == b"a"


def test_a_character_is_kept_whole() -> None:
    watch = StopWatch(["!"], ByteTokenizer().stream())
    given, result = run(watch, list("a€!".encode()))
    assert given == [[97], [], [], [*"€".encode()], []]
    assert bytes(result).decode() == "a€"


def test_text_before_the_first_new_token_does_not_count() -> None:
    watch = StopWatch(["END"], ByteTokenizer().stream(list(b"END EN")))
    assert bytes(run(watch, list(b"D and EN"))[1]) == b"D and EN"
    assert not watch.stopped


def test_the_end_gives_what_was_held_back() -> None:
    watch = StopWatch(["END"], ByteTokenizer().stream())
    given, result = run(watch, [*b"aEN", 0xC3])
    assert given == [[97], [], [], []]
    assert result == [*b"aEN", 0xC3]


def test_a_stop_that_is_only_there_at_the_end() -> None:
    watch = StopWatch(["\N{REPLACEMENT CHARACTER}"], ByteTokenizer().stream())
    assert run(watch, [97, 0xC3])[1] == [97]
    assert watch.stopped


def test_after_a_stop_nothing_is_left_to_give() -> None:
    watch = StopWatch(["b"], ByteTokenizer().stream())
    run(watch, list(b"ab"))
    assert watch.finish() == []
