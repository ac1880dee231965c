"""Token arrays from files: memory-mapped values, and an error for each way in which a file can be wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dba_core.config.data import DataConfig
from dba_core.data import token_arrays
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.data.token_arrays import array_sha256, check_vocabulary
from dba_core.errors import DataError

TOKENS = np.arange(60) * 5 % 300


def load(path: Path, **settings: object) -> Corpus:
    return load_corpus(DataConfig(source=str(path), **{"tokenizer": "ids:300", **settings}), context=4)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64", ">i4"])
def test_npy_is_mapped_and_split(tmp_path: Path, dtype: str) -> None:
    corpus = load(save(tmp_path / "a.npy", TOKENS.astype(dtype)))
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.tolist() == TOKENS.tolist()
    assert corpus.held_out.tolist() == TOKENS[54:].tolist()
    assert corpus.sha256 == hashlib.sha256(TOKENS.astype(dtype).tobytes()).hexdigest()
    assert corpus.n_bytes == TOKENS.astype(dtype).nbytes
    assert corpus.tokenizer.n_bytes(corpus.held_out) is None


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_bin_is_mapped_little_endian(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join(int(t).to_bytes(int(dtype[4:]) // 8, "little") for t in TOKENS))
    corpus = load(path, bin_dtype=dtype)
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.tolist() == TOKENS.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (TOKENS.astype("float32"), "holds float32, not token numbers"),
        (TOKENS.astype(bool), "holds bool, not token numbers"),
        (TOKENS.reshape(2, 30), r"has 2 dimensions \(shape \(2, 30\)\)"),
        (np.array(5), "has 0 dimensions"),
        (np.array([], dtype="uint16"), "holds no tokens"),
    ],
)
def test_npy_of_the_wrong_kind(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(save(tmp_path / "a.npy", array))


def test_npy_that_is_none_or_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"no array here")
    with pytest.raises(DataError, match=r"is no readable \.npy file"):
        load(path)
    save(path, TOKENS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"is no readable \.npy file"):
        load(path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"is no readable \.npy file"):
        load(path)


@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
def test_empty_array_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="is empty; give a file with tokens"):
        load(tmp_path / name)


def test_bin_that_is_no_multiple_of_its_items(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0" * 42)
    with pytest.raises(DataError, match="has 42 bytes, which is no multiple of the 4 bytes of uint32"):
        load(tmp_path / "a.bin", bin_dtype="uint32")


def test_token_out_of_the_vocabulary(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[[7, 41]] = 300, 50256
    path = save(tmp_path / "a.npy", tokens)
    with pytest.raises(DataError, match=r"token 50256 at position 41 .*'ids:300': 300 tokens, 0 to 299"):
        load(path)
    with pytest.raises(DataError, match=r"'bytes': 256 tokens, 0 to 255.*or data\.tokenizer='ids:50257'"):
        load(path, tokenizer="bytes")
    assert load(path, tokenizer="ids:50257").tokenizer.vocab_size == 50257


def test_negative_token(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[9] = -1
    with pytest.raises(DataError, match=r"token -1 at position 9 \(the smallest\)"):
        load(save(tmp_path / "a.npy", tokens))


def test_scans_go_over_the_whole_array_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_arrays, "_CHUNK", 7)
    tokens = np.zeros(20, dtype=np.int64)
    tokens[[16, 19]] = 12
    with pytest.raises(DataError, match="token 12 at position 16"):
        check_vocabulary(tokens, vocab_size=12, tokenizer="t")
    check_vocabulary(tokens, vocab_size=13, tokenizer="t")
    assert array_sha256(tokens) == hashlib.sha256(tokens.tobytes()).hexdigest()
