"""Corpora of text: what is read, how it is split, and what is said about what cannot be read."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from dba_core.config.run import DataConfig
from dba_core.data.corpus import Corpus, load_corpus, train_length
from dba_core.data.text_sources import repeated_topics
from dba_core.errors import DataError


def load(source: Path | str, *, context: int = 4, **settings: object) -> Corpus:
    return load_corpus(DataConfig(source=str(source), **settings), context=context)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_text_file_is_its_bytes(tmp_path: Path) -> None:
    content = "\ufeffline\r\n é \t\n".encode() * 8
    corpus = load(write(tmp_path / "a.txt", content))
    assert bytes(corpus.tokens.tolist()) == content  # mark, line ends, spaces: all there
    assert corpus.sha256 == hashlib.sha256(content).hexdigest()
    assert (corpus.name, corpus.n_bytes, len(corpus.documents)) == ("a.txt", len(content), 1)


def test_held_out_is_exactly_the_tail(tmp_path: Path) -> None:
    corpus = load(write(tmp_path / "a.txt", bytes(range(32, 127)) * 2), held_out=0.1)
    assert len(corpus.train) == 171  # 190 - 19
    assert corpus.held_out.tolist() == corpus.tokens[171:].tolist()
    assert np.concatenate([corpus.train, corpus.held_out]).tolist() == corpus.tokens.tolist()
    assert np.shares_memory(corpus.held_out, corpus.tokens)


@pytest.mark.parametrize(
    ("n", "held_out", "expected"),
    [(1115394, 0.1, 1003854), (100, 0.29, 71), (10, 0.1, 9), (11, 0.1, 9), (1000, 0.3, 700), (3, 0.5, 1)],
)
def test_train_length(n: int, held_out: float, expected: int) -> None:
    assert train_length(n, held_out) == expected


def test_folder_is_sorted_joined_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / "b.txt", b"second file")
    write(tmp_path / "a.md", b"first file")
    write(tmp_path / "sub" / "c.rst", b"third file")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "image.png", b"\x89PNG\0")
    write(tmp_path / ".git" / "d.txt", b"hidden")
    corpus = load(tmp_path, held_out=0.3)
    assert corpus.tokenizer.decode(corpus.tokens) == "first file\n\nsecond file\n\nthird file"
    assert [*corpus.documents.items()] == [("a.md", 10), ("b.txt", 11), ("sub/c.rst", 10)]
    assert corpus.left_out == ("empty.txt: empty", "image.png: not one of .md .rst .tex .text .txt")
    assert corpus.name == tmp_path.name


def test_folder_lists_binary_files_that_are_named_like_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"fine " * 10)
    write(tmp_path / "b.txt", b"ab\0c")
    write(tmp_path / "c.md", b"abc\xff")
    with pytest.raises(
        DataError, match=r"2 file\(s\).*b\.txt \(NUL byte at position 2\), c\.md \(byte 0xff at"
    ):
        load(tmp_path)


def test_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no text in the folder .*: it is empty\. Allowed: files that end in \.md"
    ):
        load(tmp_path)
    write(tmp_path / "a.png", b"x")
    with pytest.raises(DataError, match=r"it holds a\.png: not one of"):
        load(tmp_path)


def test_missing_file_gets_the_nearest_names(tmp_path: Path) -> None:
    write(tmp_path / "shakespeare.txt", b"x")
    with pytest.raises(DataError, match=r"data\.source: no file or folder .*Did you mean 'shakespeare\.txt'"):
        load(tmp_path / "shakespear.txt")


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nor its folder '.*nowhere'"):
        load(tmp_path / "nowhere" / "a.txt")


def test_misspelled_pydoc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean 'pydoc'\?"):
        load("pydocs")


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt' is empty"):
        load(write(tmp_path / "a.txt", b""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\0more", "NUL byte at position 4"),
        (b"text\xffmore", "byte 0xff at position 4 is no UTF-8"),
        (b"te\0xt\xffmore", "NUL byte at position 2"),
        (b"te\xffxt\0more", "byte 0xff at position 2"),
        ("text".encode("utf-16-le"), "NUL byte at position 1"),
        ("é".encode()[:1], "byte 0xc3 at position 0"),
    ],
)
def test_binary_file_read_as_text(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"is no UTF-8 text: {message}"):
        load(write(tmp_path / "a.txt", content))


def test_either_part_must_hold_one_sequence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x" * 100)
    assert len(load(path, context=9, held_out=0.1).held_out) == 10
    with pytest.raises(
        DataError, match=r"100 tokens, of which the held-out part has 10 .*context of 10 needs at least 11"
    ):
        load(path, context=10, held_out=0.1)
    with pytest.raises(DataError, match=r"of which the training part has 20 with data\.held_out=0\.8"):
        load(path, context=20, held_out=0.8)


def test_ids_do_not_fit_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer: 'ids:300' does not fit 'a\.txt', which is text"):
        load(write(tmp_path / "a.txt", b"1 2 3 4 5 6"), tokenizer="ids:300")


def test_a_tokenizer_that_makes_nothing_of_the_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"x": 0}, merges=[]))
    made.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "a.txt", b"hello world")
    with pytest.raises(DataError, match=r"turned 11 bytes into no token at all"):
        load(path, tokenizer=str(tmp_path / "tokenizer.json"))


def test_description_is_json_and_complete(tmp_path: Path) -> None:
    described = load(write(tmp_path / "a.txt", b"abcdefghij" * 10)).describe()
    assert described == {
        "name": "a.txt",
        "version": None,
        "documents": 1,
        "bytes": 100,
        "sha256": hashlib.sha256(b"abcdefghij" * 10).hexdigest(),
        "tokenizer": "bytes",
        "vocab_size": 256,
        "tokens": 100,
        "train_tokens": 90,
        "held_out_tokens": 10,
        "left_out": [],
    }


def test_pydoc_holds_every_topic_that_is_not_repeated() -> None:
    from pydoc_data.topics import topics

    corpus = load("pydoc", context=128)
    text = corpus.tokenizer.decode(corpus.tokens)
    names = [*corpus.documents]
    left_out = [line.split(":")[0] for line in corpus.left_out]
    assert sorted(names + left_out) == sorted(topics)
    assert names == sorted(names)
    at = 0
    for name in names:
        piece = f"{name}\n{'#' * len(name)}\n\n{topics[name]}"
        assert text[at : at + len(piece)] == piece  # in order, word for word
        at += len(piece) + 2
    assert at == len(text) + 2
    assert corpus.version == f"Python {platform.python_version()}"
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.n_bytes == len(corpus.tokens) > 200_000


def test_pydoc_leaves_no_paragraph_of_the_left_out_topics_behind() -> None:
    from pydoc_data.topics import topics

    corpus = load("pydoc", context=128)
    words = " ".join(corpus.tokenizer.decode(corpus.tokens).split())
    left_out = [line.split(":")[0] for line in corpus.left_out]
    assert left_out
    for name in left_out:
        for paragraph in topics[name].split("\n\n"):
            if paragraph.rstrip("*=-~") == paragraph:
                assert " ".join(paragraph.split()) in words


def test_repeated_topics() -> None:
    topics = {
        "whole": "Whole\n*****\n\none\n\ntwo  words\n\nthree",
        "part": "Part\n****\n\n   two words\n\none",
        "twin": "Twin\n****\n\none\n\ntwo  words\n\nthree!",
        "alone": "Alone\n*****\n\nthree\n\nfour",
        "same a": "x",
        "same b": "x",
        "title only": "Title\n*****",
    }
    assert repeated_topics(topics) == {"part", "same a"}


def test_pydoc_missing_from_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="'pydoc_data' is missing"):
        load("pydoc")
