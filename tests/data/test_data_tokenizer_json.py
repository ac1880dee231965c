"""A tokenizer.json gives a text whole, whatever its training left in it; a damaged one is a DataError."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizer_files import adding, byte_level, damaged, documents

from dba_core.config.run import DataConfig
from dba_core.data.corpus import load_corpus
from dba_core.data.tokenizers import guarded, load_tokenizer, special_of
from dba_core.errors import DataError

pytestmark = pytest.mark.needs("tokenizers")

LONG = "abcdefghij" * 500


@pytest.mark.parametrize("setting", ["truncation", "padding", "dropout", "post_processor"])
def test_a_text_comes_through_whole(setting: str, tmp_path: Path) -> None:
    made = byte_level(merges=False)
    if setting == "truncation":
        made.enable_truncation(128)
    elif setting == "padding":
        made.enable_padding(length=8000, pad_id=0, pad_token="!")
    elif setting == "dropout":
        made.model.dropout = 0.5
    else:
        made = adding(made, "<s> $A </s>")
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    tokenizer = load_tokenizer(str(path))
    assert len(tokenizer.encode(LONG)) == 5000
    assert tokenizer.decode(tokenizer.encode("The cap")) == "The cap"
    (tmp_path / "text.txt").write_text(LONG)
    corpus = load_corpus(DataConfig(source=str(tmp_path / "text.txt"), tokenizer=str(path)), context=4)
    assert (len(corpus.tokens), corpus.keeps_text, corpus.left_out) == (5000, True, ())


def test_encoding_is_not_random(tmp_path: Path) -> None:
    """With dropout 0.5 `the` would be one token in about a quarter of its places."""
    document = documents()[0]
    document["model"]["dropout"] = 0.5
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    assert set(load_tokenizer(str(path)).encode("the" * 200).tolist()) == {257}


def test_unigram_sampling_is_left_out(tmp_path: Path) -> None:
    document = documents()[1]
    document["model"] |= {"nbest_size": 64, "alpha": 0.1}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    assert load_tokenizer(str(path)).encode("the " * 50).tolist() == [1] * 50 + [5]


def test_a_text_that_the_vocabulary_loses_is_said(tmp_path: Path) -> None:
    """Words come back without the white space between them: 12 bytes of 18, and no bits per byte."""
    path, text = tmp_path / "tokenizer.json", tmp_path / "text.txt"
    path.write_text(json.dumps(documents()[0] | {"pre_tokenizer": {"type": "WhitespaceSplit"}}))
    text.write_text("the  the  the  the")
    config = DataConfig(source=str(text), tokenizer=str(path), held_out=0.5)
    corpus = load_corpus(config, context=1)
    assert corpus.byte_counter is None
    (note,) = corpus.left_out
    assert "decode to 12 bytes and the text has 18" in note


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"model": {"vocab": {"a": 1 << 40}}}, r"token 'a' has number 1099511627776; allowed: 0 to 16777215"),
        ({"model": {"vocab": {"a": 16777216}}}, r"token 'a' has number 16777216"),
        ({"model": {"vocab": {"a": -1}}}, r"token 'a' has number -1"),
        ({"model": {"vocab": {"a": 1.0}}}, r"token 'a' has number 1\.0"),
        ({"model": {"vocab": {"a": 3, "b": 3}}}, r"tokens 'a' and 'b' have the same number 3"),
        ({"added_tokens": [{"id": 1 << 40, "content": "z"}]}, r"token 'z' has number 1099511627776"),
        ({"model": {"type": "BPE"}}, r"damaged, or of a version of the package 'tokenizers'"),
        ({"normalizer": {"type": "Nothing"}}, r"damaged, or of a version of the package 'tokenizers'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(change, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(documents()[0] | change))
    with pytest.raises(DataError, match=hint) as caught:
        load_tokenizer(str(path))
    assert str(path) in str(caught.value)


def test_damaged_files_end_in_a_data_error_or_work(tmp_path: Path) -> None:
    draw, whole, path = random.Random(20), documents(), tmp_path / "tokenizer.json"
    ends = {"works": 0, "refused": 0}
    for number in range(300):
        path.write_bytes(damaged(draw, whole[number % len(whole)]))
        try:
            tokenizer = load_tokenizer(str(path))
            ids = tokenizer.encode("the cat\n é😀 ( x" * 3)
            assert tokenizer.decode(ids) is not None
            tokenizer.stream().push(ids.tolist())
            special_of({}, tokenizer, source=str(path))
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            ends["refused"] += 1
        else:
            ends["works"] += 1
    assert min(ends.values()) > 20, "the damage is neither too small nor too large"


class Panic(BaseException):
    """As pyo3_runtime.PanicException is."""


@pytest.mark.parametrize("error", [Exception("plain"), Panic("index out of range"), RecursionError("deep")])
def test_foreign_errors_become_ours(error: BaseException) -> None:
    def act() -> None:
        raise error

    with pytest.raises(DataError, match=f"said: {error}"):
        guarded(act, lambda reason: DataError(f"said: {reason}"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), DataError("our own")])
def test_interrupts_and_our_own_errors_pass(error: BaseException) -> None:
    def act() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        guarded(act, lambda reason: DataError("another"))
    assert caught.value is error
