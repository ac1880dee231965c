"""Tokenizers that need no extra, and what is said about names that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dba_core.data.tokenizers import ByteTokenizer, load_tokenizer, token_dtype
from dba_core.errors import DataError


def test_bytes_are_the_utf8_bytes() -> None:
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode("hé\n€")
    assert ids.tolist() == [0x68, 0xC3, 0xA9, 0x0A, 0xE2, 0x82, 0xAC]
    assert ids.dtype == np.uint8
    assert tokenizer.decode(ids) == "hé\n€"
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.n_bytes(ids)) == ("bytes", 256, 7)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([0x61, 0xFF, 0x62, 0xC3]) == "a\ufffdb\ufffd"
    assert tokenizer.decode([0x61, 300, 0x62]) == "a\ufffdb"  # a model may have a larger vocabulary


def test_ids_are_their_numbers() -> None:
    tokenizer = load_tokenizer("ids:300")
    ids = tokenizer.encode(" 0 17\n299 ")
    assert ids.tolist() == [0, 17, 299]
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == "0 17 299"
    assert tokenizer.n_bytes(ids) is None
    assert (tokenizer.name, tokenizer.vocab_size) == ("ids:300", 300)
    assert load_tokenizer(tokenizer.name).vocab_size == 300


@pytest.mark.parametrize("text", ["1 x", "1 300", "1 -2", "1 99999999999999999999", "1 " + "9" * 5000])
def test_ids_refuse_what_is_no_token(text: str) -> None:
    word = text.split()[1][:59]
    with pytest.raises(DataError, match=rf"got '{word}'? at word 1; allowed: numbers from 0 to 299"):
        load_tokenizer("ids:300").encode(text)


@pytest.mark.parametrize("size", ["", "0", "x", "1.5", "-3", "4294967297", "16777217", "9" * 5000])
def test_ids_need_a_vocabulary(size: str) -> None:
    with pytest.raises(DataError, match=r"is no vocabulary size; allowed: 1 to 16777216\. Write ids:50257"):
        load_tokenizer(f"ids:{size}")


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")]
)
def test_the_dtype_just_holds_the_vocabulary(size: int, dtype: str) -> None:
    assert np.dtype(token_dtype(size)) == np.dtype(dtype)


def test_unknown_name_gets_the_nearest_and_all_forms() -> None:
    with pytest.raises(
        DataError, match=r"data\.tokenizer: no tokenizer 'byte'.*Did you mean 'bytes'\?"
    ) as caught:
        load_tokenizer("byte")
    for form in ("bytes", "ids:VOCABULARY", "tiktoken:NAME", "tokenizer.json"):
        assert form in str(caught.value)


def test_missing_file_gets_the_nearest_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"Did you mean 'tokenizer\.json'"):
        load_tokenizer(str(tmp_path / "tokeniser.json"))


def test_folder_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; give the tokenizer\.json inside it"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"[1]", "holds a list; allowed: one JSON object"),
        (b"", "is not valid JSON"),
        (b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b'{"a": 1}', "has no 'model' object"),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(path))
