"""Text that arrives token by token: the pieces join to the whole text; none holds half a character."""

from __future__ import annotations

import random

import pytest

from dba_core.data.text_stream import ByteTextStream, WindowTextStream
from dba_core.data.tokenizers import ByteTokenizer, IdTokenizer

TEXT = "aé€😀z"  # 1, 2, 3, 4 and 1 bytes


def byte(token: int) -> bytes:
    return bytes((token,))


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    stream = ByteTokenizer().stream()
    pieces, pending = [], []
    for token in TEXT.encode():
        pieces.append(stream.push([token]))
        pending.append(stream.pending)
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "z"]
    assert pending == [False, True, False, True, True, False, True, True, True, False, False]
    assert stream.finish() == ""


@pytest.mark.parametrize("seed", range(20))
def test_byte_pieces_join_to_the_whole_decoding_of_any_bytes(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(rng.choice([*b"ab", 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF]) for _ in range(60))
    stream = ByteTextStream(byte)
    pieces = []
    at = 0
    while at < len(data):
        step = rng.randint(0, 4)
        pieces.append(stream.push(data[at : at + step]))
        at += step
    assert "".join(pieces) + stream.finish() == data.decode("utf-8", errors="replace")


def test_an_unfinished_character_becomes_the_replacement_character_at_the_end() -> None:
    stream = ByteTokenizer().stream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_context_is_not_shown_but_completes_a_character() -> None:
    stream = ByteTokenizer().stream(list("abé".encode()[:-1]))
    assert stream.pending
    assert stream.push(["é".encode()[1]]) == "é"


def words(ids: list[int] | tuple[int, ...]) -> str:
    """A decoder that drops the space before the first word, as word-piece tokenizers do."""
    table = [" a", " bc", "d", " é", "\N{REPLACEMENT CHARACTER}"]
    return "".join(table[i] for i in ids).removeprefix(" ")


def test_window_pieces_join_to_the_whole_decoding() -> None:
    ids = [0, 1, 2, 3, 0, 2]
    stream = WindowTextStream(words)
    pieces = [stream.push([i]) for i in ids]
    assert pieces == ["a", " bc", "d", " é", " a", "d"]
    assert "".join(pieces) + stream.finish() == words(ids) == "a bcd é ad"


def test_window_holds_back_what_may_be_half_a_character() -> None:
    stream = WindowTextStream(words)
    assert stream.push([0]) == "a"
    assert stream.push([4]) == ""
    assert stream.pending
    assert stream.push([1]) == "\N{REPLACEMENT CHARACTER} bc"
    assert not stream.pending
    assert stream.push([4]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert not stream.pending


def test_window_goes_on_after_a_context_without_its_text() -> None:
    stream = WindowTextStream(words, context=[0, 1])
    assert not stream.pending
    assert stream.push([0]) == " a"  # the space stays: the word is not the first


def test_ids_stream_with_their_separators() -> None:
    tokenizer = IdTokenizer(100)
    stream = tokenizer.stream()
    assert [stream.push([i]) for i in (7, 12, 3)] == ["7", " 12", " 3"]
