"""Token arrays from files, memory-mapped: `.npy` (integers, one-dimensional) and `.bin` (raw uint16 or
uint32, little-endian). Called by the corpus.
"""

from __future__ import annotations

import hashlib
import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dba_core.data.text_sources import KEY
from dba_core.data.tokenizers import Tokens
from dba_core.errors import DataError
from dba_core.printable import printable

_CHUNK = 1 << 22  # tokens looked at in one piece

#: What numpy's reader of headers answers to bytes that are none: it parses them as Python source.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    OSError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)


def read_npy(path: Path) -> Tokens:
    """The array of a `.npy` file, memory-mapped. Its header is judged before anything is mapped."""
    size = _require_content(path)
    try:
        shape, dtype, offset = _read_header(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{str(path)!r} is no readable .npy file ({_escaped(error)}); write it with numpy.save of an "
            "integer array",
            path=KEY,
        ) from error
    if dtype.kind not in "iu":
        raise DataError(
            f"{str(path)!r} holds {_escaped(dtype)}, not token numbers; allowed: integer arrays, "
            "saved with array.astype('uint16') or 'uint32'",
            path=KEY,
        )
    if len(shape) != 1:
        raise DataError(
            f"{str(path)!r} has {len(shape)} dimensions (shape {_escaped(shape)}); allowed: one dimension, "
            "saved with array.reshape(-1)",
            path=KEY,
        )
    if shape[0] == 0:
        raise DataError(f"{str(path)!r} holds no tokens; give an array that does", path=KEY)
    if not 0 < shape[0] <= (size - offset) // dtype.itemsize:
        raise DataError(
            f"{str(path)!r} is no readable .npy file (its header says {_escaped(shape[0])} numbers of "
            f"{dtype.itemsize} bytes, {size - offset:,} bytes follow it); it is cut off, get it again",
            path=KEY,
        )
    return _mapped(path, dtype, offset=offset, count=shape[0])


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
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


def _mapped(path: Path, dtype: np.dtype[Any], *, offset: int = 0, count: int) -> Tokens:
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read ({error}); give a readable file", path=KEY) from error


def _escaped(value: object) -> str:
    """What a foreign file says, in a message: short, and fit for a terminal."""
    return printable(str(value))[:200]


def read_bin(path: Path, dtype: str) -> Tokens:
    """The tokens of a raw file, memory-mapped. `dtype` is `uint16` or `uint32`."""
    size = _require_content(path)
    item = np.dtype(dtype).newbyteorder("<")
    if size % item.itemsize:
        raise DataError(
            f"{str(path)!r} has {size} bytes, which is no multiple of the {item.itemsize} bytes of {dtype}; "
            "the file is cut off or data.bin_dtype is wrong",
            path=KEY,
        )
    return _mapped(path, item, count=size // item.itemsize)


def check_vocabulary(tokens: Tokens, *, vocab_size: int, tokenizer: str) -> None:
    """Every token is in 0 .. vocab_size-1; else DataError with the worst one and its position."""
    low, low_at, high, high_at = 0, 0, -1, 0
    for start in range(0, len(tokens), _CHUNK):
        part = np.asarray(tokens[start : start + _CHUNK])
        if int(part.min()) < low:
            low, low_at = int(part.min()), start + int(part.argmin())
        if int(part.max()) > high:
            high, high_at = int(part.max()), start + int(part.argmax())
    value, position = (low, low_at) if low < 0 else (high, high_at)
    if 0 <= value < vocab_size:
        return
    what = "smallest" if value < 0 else "largest"
    raise DataError(
        f"token {value} at position {position} (the {what}) is outside of the vocabulary of tokenizer "
        f"{tokenizer!r}: {vocab_size} tokens, 0 to {vocab_size - 1}. Give the tokenizer that made the array, "
        f"or data.tokenizer='ids:{max(high, 0) + 1}' for tokens without text",
        path="data.tokenizer",
    )


def array_sha256(tokens: Tokens) -> str:
    """The hash of the tokens as stored, piece by piece."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), _CHUNK):
        digest.update(np.ascontiguousarray(tokens[start : start + _CHUNK]).tobytes())
    return digest.hexdigest()


def _require_content(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); give a file", path=KEY) from error
    if size == 0:
        raise DataError(f"the file {str(path)!r} is empty; give a file with tokens", path=KEY)
    return size
