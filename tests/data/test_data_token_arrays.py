"""Token arrays from files: memory-mapped values, and an error for each way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dba_core.config.run import DataConfig
from dba_core.data.corpus import Corpus, check_vocabulary, load_corpus
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
    with pytest.raises(DataError, match="holds object, not token numbers"):
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


def test_the_first_of_the_largest_tokens_is_named() -> None:
    tokens = np.zeros(20, dtype=np.int64)
    tokens[[16, 19]] = 12
    with pytest.raises(DataError, match="token 12 at position 16"):
        check_vocabulary(tokens, vocab_size=12, tokenizer="t")
    check_vocabulary(tokens, vocab_size=13, tokenizer="t")


def header(text: str) -> bytes:
    """A .npy file of format 1.0 with this text as its header, and 120 bytes after it."""
    line = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + bytes(120)


SHAPES = (
    "(1152921504606846976,)", "(-5,)", "(-1,)", "(61,)", "(60.0,)", "(True,)", "(1<<70,)",
    "(99999999999999999999,)", "()", "(60", "None", "((60,),)", "(" * 3000, "-" * 5000 + "1",
)  # fmt: skip
TYPES = ("'<u2'", "'|O'", "[('a','<u2')]", "'|V0'", "'<U5'", "'<u9'", "None", "'M8[s]'", "{}", "'i4,i4'")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=[shape[:24] for shape in SHAPES])
def test_a_header_that_lies_is_a_data_error(tmp_path: Path, shape: str, dtype: str) -> None:
    path = tmp_path / "a.npy"
    for order in ("False", "True"):
        path.write_bytes(header(f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"))
        with pytest.raises(DataError, match=r"a\.npy"):
            load(path)


def test_any_bytes_are_an_array_or_a_data_error(tmp_path: Path) -> None:
    path, random = tmp_path / "a.npy", Random(8)
    whole = save(path, (TOKENS % 200).astype("uint16")).read_bytes()
    taken = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(min(len(damaged), 140))
            act = random.randrange(4)
            if act == 0:
                damaged[place] = random.randrange(256)
            elif act == 1:
                del damaged[place:]
                damaged += b"\0"
            elif act == 2:
                del damaged[place]
            else:
                damaged.insert(place, random.choice(b"()[]{}',:0123456789-\0\n\xff"))
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(DataError):
            taken += len(load(path).tokens) > 0
    assert 0 < taken < 300
