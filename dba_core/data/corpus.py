"""The corpus of a run: one array of tokens, its first part to train on, its tail held out.

    n_train = floor(n * (1 - held_out))        the held-out part is everything after it

The tokens are those of a text, encoded here, or an array in a file, memory-mapped: `.npy` (integers,
one-dimensional) or `.bin` (raw uint16 or uint32, little-endian).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from dba_core.config.run import DataConfig
from dba_core.data.text_sources import INSTALLED, bad_source, read_texts, require_path
from dba_core.data.tokenizers import IdTokenizer, Tokenizer, Tokens, load_tokenizer
from dba_core.errors import DataError
from dba_core.printable import printable
from dba_core.registry.contain import Failure, contain

#: Between two documents of one text.
SEPARATOR = "\n\n"


@attrs.frozen(kw_only=True, eq=False)
class Corpus:
    """Tokens and where they are from. `train` and `held_out` are views of `tokens`, without overlap.

    documents: bytes of each one by its name. n_bytes: UTF-8 bytes of the text; of a token array its stored
    bytes. sha256: of the same bytes. version: that the text depends on. left_out: what was found and not
    used, and why. is_text: the tokens are of a text that was encoded here. keeps_text: they decode to as many
    bytes as the text has.
    """

    name: str
    tokens: Tokens = attrs.field(repr=False)
    n_train: int
    tokenizer: Tokenizer
    documents: Mapping[str, int] = attrs.field(repr=False)
    n_bytes: int
    sha256: str
    version: str | None = None
    left_out: tuple[str, ...] = attrs.field(default=(), repr=False)
    is_text: bool = False
    keeps_text: bool = False

    @property
    def byte_counter(self) -> Tokenizer | None:
        """What counts the bytes of these tokens; None where its count would not be that of the text."""
        return self.tokenizer if self.keeps_text else None

    def as_read(self, tokens: Tokens) -> Tokens:
        """A part of the tokens as a text of its own, with the special tokens of the model that is to read it;
        a token array is taken as it is.
        """
        return self.tokenizer.special.around(tokens) if self.is_text else tokens

    @property
    def train(self) -> Tokens:
        return self.tokens[: self.n_train]

    @property
    def held_out(self) -> Tokens:
        return self.tokens[self.n_train :]

    def describe(self) -> dict[str, Any]:
        """What a summary says about the corpus; JSON types only."""
        return {
            "name": self.name,
            "version": self.version,
            "documents": len(self.documents),
            "bytes": self.n_bytes,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer.name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": len(self.tokens),
            "train_tokens": len(self.train),
            "held_out_tokens": len(self.held_out),
            "left_out": list(self.left_out),
        }


def load_corpus(config: DataConfig, *, context: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read the source, encode it, and split off the held-out tail.

    context: tokens of one training sequence; either part must hold one more (inputs and shifted targets).
    tokenizer: that of a loaded model, instead of loading the one that the configuration names. Raises
    DataError with the file, what is wrong with it and what to do.
    """
    tokenizer = load_tokenizer(config.tokenizer) if tokenizer is None else tokenizer
    path = Path(config.source)
    is_array = config.source not in INSTALLED and path.suffix.lower() in (".npy", ".bin") and path.is_file()
    corpus = (_array_corpus if is_array else _text_corpus)(config, tokenizer)
    check_vocabulary(corpus.tokens, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.name)
    for part, tokens in (("training", corpus.train), ("held-out", corpus.held_out)):
        if len(tokens) < context + 1:
            raise bad_source(
                f"{corpus.name!r} is too short: {len(corpus.tokens)} tokens, of which the {part} part has "
                f"{len(tokens)} with data.held_out={config.held_out:g}; a context of {context} needs at "
                f"least {context + 1} in either part. Give more text, or make model.context smaller"
            )
    return corpus


def check_source(source: str) -> None:
    """Raise DataError for a corpus that is not there. Reads nothing; the tokens are read by `load_corpus`."""
    if source not in INSTALLED:
        require_path(source)


def train_length(n_tokens: int, held_out: float) -> int:
    """floor(n * (1 - held_out)), with the share taken as the decimal number that was written."""
    return int(n_tokens * (1 - Fraction(repr(held_out))))


def _array_corpus(config: DataConfig, tokenizer: Tokenizer) -> Corpus:
    path = Path(config.source)
    tokens = read_npy(path) if path.suffix.lower() == ".npy" else read_bin(path, config.bin_dtype)
    return Corpus(
        name=path.name,
        tokens=tokens,
        n_train=train_length(len(tokens), config.held_out),
        tokenizer=tokenizer,
        documents={path.name: tokens.nbytes},
        n_bytes=tokens.nbytes,
        sha256=hashlib.sha256(tokens.view(np.uint8).data).hexdigest(),
    )


def _text_corpus(config: DataConfig, tokenizer: Tokenizer) -> Corpus:
    source = read_texts(config.source)
    if isinstance(tokenizer, IdTokenizer):
        raise DataError(
            f"{tokenizer.name!r} does not fit {source.name!r}, which is text; it is for .npy and .bin token "
            "arrays. Give 'bytes', tiktoken:NAME or the path of a tokenizer.json",
            path="data.tokenizer",
        )
    text = SEPARATOR.join(source.texts.values())
    data = text.encode("utf-8")
    tokens = tokenizer.encode(text)
    if len(tokens) == 0:
        raise DataError(
            f"{tokenizer.name!r} does not fit {source.name!r}: it turned {len(data)} bytes into no "
            "token at all. Give the tokenizer of this language, or 'bytes'",
            path="data.tokenizer",
        )
    kept = tokenizer.n_bytes(tokens)
    left_out = list(source.left_out)
    if kept is not None and kept != len(data):
        left_out.append(
            f"tokenizer {tokenizer.name}: its tokens decode to {kept:,} bytes and the text has {len(data):,};"
            " it changes the text, or has no token for a part of it, and bits per byte are not given"
        )
    return Corpus(
        name=source.name,
        tokens=tokens,
        n_train=train_length(len(tokens), config.held_out),
        tokenizer=tokenizer,
        documents={name: len(part.encode("utf-8")) for name, part in source.texts.items()},
        n_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        version=source.version,
        left_out=tuple(left_out),
        is_text=True,
        keeps_text=kept == len(data),
    )


def read_npy(path: Path) -> Tokens:
    """The array of a `.npy` file, memory-mapped. Its header is judged before anything is mapped: numpy does
    not survive every header that lies.
    """
    size = _require_content(path)
    header = contain(lambda: _npy_header(path))
    if isinstance(header, Failure):
        raise bad_source(
            f"{str(path)!r} is no readable .npy file ({_escaped(header.error)}); write it with numpy.save of "
            "an integer array"
        ) from header.error
    shape, dtype, offset = header
    if dtype.kind not in "iu":
        raise bad_source(
            f"{str(path)!r} holds {_escaped(dtype)}, not token numbers; allowed: integer arrays, "
            "saved with array.astype('uint16') or 'uint32'"
        )
    if len(shape) != 1:
        raise bad_source(
            f"{str(path)!r} has {len(shape)} dimensions (shape {_escaped(shape)}); allowed: one dimension, "
            "saved with array.reshape(-1)"
        )
    if shape[0] == 0:
        raise bad_source(f"{str(path)!r} holds no tokens; give an array that does")
    if not 0 < shape[0] <= (size - offset) // dtype.itemsize:
        raise bad_source(
            f"{str(path)!r} is no readable .npy file (its header says {_escaped(shape[0])} numbers of "
            f"{dtype.itemsize} bytes, {size - offset:,} bytes follow it); it is cut off, get it again"
        )
    return _mapped(path, dtype, offset=offset, count=shape[0])


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and where the numbers begin."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a foreign header, which numpy reads as source text
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"format {version}; integer arrays are written in 1.0 or 2.0")
        if any(isinstance(length, bool) for length in shape):
            raise ValueError(f"shape {shape} is no shape")
        return shape, dtype, file.tell()


def read_bin(path: Path, dtype: str) -> Tokens:
    """The tokens of a raw file, memory-mapped. `dtype` is `uint16` or `uint32`."""
    size = _require_content(path)
    item = np.dtype(dtype).newbyteorder("<")
    if size % item.itemsize:
        raise bad_source(
            f"{str(path)!r} has {size} bytes, which is no multiple of the {item.itemsize} bytes of {dtype}; "
            "the file is cut off or data.bin_dtype is wrong"
        )
    return _mapped(path, item, offset=0, count=size // item.itemsize)


def _mapped(path: Path, dtype: np.dtype[Any], *, offset: int, count: int) -> Tokens:
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except (OSError, ValueError) as error:
        raise bad_source(f"{str(path)!r} cannot be read ({error}); give a readable file") from error


def _require_content(path: Path) -> int:
    if (size := path.stat().st_size) == 0:
        raise bad_source(f"the file {str(path)!r} is empty; give a file with tokens")
    return size


def _escaped(value: object) -> str:
    """What a foreign file says, in a message: short, and fit for a terminal."""
    return printable(str(value))[:200]


def check_vocabulary(tokens: Tokens, *, vocab_size: int, tokenizer: str) -> None:
    """Every token is in 0 .. vocab_size-1; else DataError with the worst one and its position."""
    low, high = int(tokens.min()), int(tokens.max())
    if low >= 0 and high < vocab_size:
        return
    value, what, position = (
        (low, "smallest", tokens.argmin()) if low < 0 else (high, "largest", tokens.argmax())
    )
    raise DataError(
        f"token {value} at position {position} (the {what}) is outside of the vocabulary of tokenizer "
        f"{tokenizer!r}: {vocab_size} tokens, 0 to {vocab_size - 1}. Give the tokenizer that made the array, "
        f"or data.tokenizer='ids:{max(high, 0) + 1}' for tokens without text",
        path="data.tokenizer",
    )
