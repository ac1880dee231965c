"""The header of a GGUF file: metadata and where each tensor is. Every length is compared with what is left of
the file before anything is made of it.

    "GGUF", version u32, tensors u64, fields u64, {name, type u32, value},
    {name, n u32, shape u64[n], type u32, offset u64}, padding, tensor data

Texts are a length u64 and UTF-8. Little-endian, versions 2 and 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from dba_core.errors import CheckpointError, SourceError
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import shown, size_of_file

Bytes = NDArray[np.uint8]
_TEXT, _ARRAY = 8, 9
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_MOST_AXES = 4


@attrs.frozen(kw_only=True, eq=False)
class GgufTensor:
    """kind: the number of its ggml type. shape: rows first. data: its bytes, mapped, [..., row]."""

    name: str
    kind: int
    shape: tuple[int, ...]
    data: Bytes


@attrs.frozen(kw_only=True, eq=False)
class GgufHeader:
    """fields: numbers, texts, arrays of numbers (numpy) and lists of texts."""

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """block_sizes: of each ggml type, elements and bytes of a block.

    Raises CheckpointError for a file that is cut off, damaged or no GGUF, SourceError for another
    version, byte order or a type that is not in `block_sizes`.
    """
    size_of_file(path)
    try:
        data: Bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    cursor = _Cursor(data, path)
    if bytes(cursor.take(4)) != b"GGUF":
        raise cursor.damaged("it does not begin with 'GGUF'")
    version = cursor.number(4)
    if version not in (2, 3):
        order = " (of the other byte order)" if version & 0xFFFF == 0 else ""
        raise SourceError(f"{path} is GGUF version {version}{order}; supported: 2 and 3, little-endian")
    n_tensors, n_fields = cursor.count(at_least=24), cursor.count(at_least=13)
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.text()
        if name in fields:
            raise cursor.damaged(f"the field {printable(name)} is there twice")
        fields[name] = cursor.value()
    infos = [cursor.tensor_info() for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.damaged(f"general.alignment is {shown(alignment)}, not a power of two up to 2^20")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.damaged(f"the tensor {printable(info.name)} is there twice")
        tensors[info.name] = _tensor(cursor, info, start, block_sizes)
    _check_apart(cursor, infos, tensors)
    return GgufHeader(fields=fields, tensors=tensors)


@attrs.frozen(kw_only=True)
class _Info:
    """axes: fastest first, as in the file. offset: from the start of the tensor data."""

    name: str
    axes: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """Reads on from `at`; nothing is read past the end."""

    def __init__(self, data: Bytes, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be read as GGUF ({reason}); it is cut off, damaged or no GGUF file. "
            "Download it again"
        )

    def take(self, n_bytes: int) -> Bytes:
        if n_bytes > len(self.data) - self.at:
            raise self.damaged(f"{n_bytes} bytes are to follow byte {self.at}, the file has {len(self.data)}")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, kind: int) -> Any:
        """One number of a type of the format, as Python's."""
        dtype = np.dtype(_NUMBERS[kind])
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def count(self, *, at_least: int) -> int:
        """How many of something follow, each of `at_least` bytes."""
        many: int = self.number(10)
        if many * at_least > len(self.data) - self.at:
            raise self.damaged(
                f"{many} entries are to follow byte {self.at}, the file has {len(self.data)} bytes"
            )
        return many

    def text(self) -> str:
        n_bytes = self.count(at_least=1)
        try:
            return bytes(self.take(n_bytes)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"the text before byte {self.at} is not UTF-8") from None

    def value(self) -> Any:
        kind = self.number(4)
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise self.damaged(f"a value of the unknown type {kind} before byte {self.at}")
        return self.number(kind)

    def _array(self) -> Any:
        kind = self.number(4)
        if kind == _TEXT:
            return [self.text() for _ in range(self.count(at_least=8))]
        if kind not in _NUMBERS:
            raise self.damaged(f"an array of the type {kind} before byte {self.at}; allowed: numbers, texts")
        dtype = np.dtype(_NUMBERS[kind])
        return self.take(self.count(at_least=dtype.itemsize) * dtype.itemsize).view(dtype).copy()

    def tensor_info(self) -> _Info:
        name, n_axes = self.text(), self.number(4)
        if not 1 <= n_axes <= _MOST_AXES:
            raise self.damaged(f"{printable(name)} has {n_axes} axes; allowed: 1 to {_MOST_AXES}")
        axes = tuple(self.number(10) for _ in range(n_axes))
        return _Info(name=name, axes=axes, kind=self.number(4), offset=self.number(10))


def _tensor(
    cursor: _Cursor, info: _Info, start: int, block_sizes: Mapping[int, tuple[int, int]]
) -> GgufTensor:
    """Its bytes, where the shape and the type say that they are."""
    if info.kind not in block_sizes:
        raise SourceError(
            f"{cursor.path}: {printable(info.name)} is of ggml type {info.kind}, which is not supported; "
            "give a file of floating-point or block-quantized weights"
        )
    elements, n_bytes = block_sizes[info.kind]
    row, *others = info.axes
    if row % elements or 0 in info.axes:
        raise cursor.damaged(
            f"{printable(info.name)} has axes {list(info.axes)}; blocks of its type hold {elements} elements"
        )
    row_bytes, rows = row // elements * n_bytes, 1
    for axis in others:
        rows *= axis
    begin = start + info.offset
    if begin + rows * row_bytes > len(cursor.data):
        raise cursor.damaged(
            f"{printable(info.name)} is {rows * row_bytes} bytes from byte {begin}, the file has "
            f"{len(cursor.data)}"
        )
    shape = tuple(reversed(info.axes))
    data = cursor.data[begin : begin + rows * row_bytes].reshape(*shape[:-1], row_bytes)
    return GgufTensor(name=info.name, kind=info.kind, shape=shape, data=data)


def _check_apart(cursor: _Cursor, infos: list[_Info], tensors: Mapping[str, GgufTensor]) -> None:
    """No two tensors hold the same bytes."""
    ordered = sorted(infos, key=lambda info: info.offset)
    for one, next_one in itertools.pairwise(ordered):
        if one.offset + tensors[one.name].data.size > next_one.offset:
            raise cursor.damaged(f"{printable(one.name)} and {printable(next_one.name)} overlap")
