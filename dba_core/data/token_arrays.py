"""Token arrays from files, memory-mapped: `.npy` (integers, one-dimensional) and `.bin` (raw uint16 or
uint32, little-endian). Called by the corpus.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dba_core.data.text_sources import KEY
from dba_core.data.tokenizers import Tokens
from dba_core.errors import DataError

_CHUNK = 1 << 22  # tokens looked at in one piece


def read_npy(path: Path) -> Tokens:
    """The array of a `.npy` file, memory-mapped."""
    _require_content(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise DataError(
            f"{str(path)!r} is no readable .npy file ({error}); write it with numpy.save of an integer array",
            path=KEY,
        ) from error
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{str(path)!r} holds {array.dtype}, not token numbers; allowed: integer arrays, "
            "saved with array.astype('uint16') or 'uint32'",
            path=KEY,
        )
    if array.ndim != 1:
        raise DataError(
            f"{str(path)!r} has {array.ndim} dimensions (shape {array.shape}); allowed: one dimension, "
            "saved with array.reshape(-1)",
            path=KEY,
        )
    if array.size == 0:
        raise DataError(f"{str(path)!r} holds no tokens; give an array that does", path=KEY)
    return array


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
    return np.memmap(path, dtype=item, mode="r")


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
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"the file {str(path)!r} is empty; give a file with tokens", path=KEY)
    return size
