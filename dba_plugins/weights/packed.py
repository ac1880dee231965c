"""A weight as it lies in memory, and the product with it: a few rows of x by the compiled kernel where that
can be had (float32 on the CPU), everything else with the weight as float32 for the length of the call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_plugins.native.threads import on_threads
from dba_plugins.weights import ENTRY, MOST_ROWS

if TYPE_CHECKING:
    from dba_plugins.native.compiler import Compiled

#: Arguments of `weights.kernel`, which cannot be imported without llvmlite.
X, OUT = 1, 5
_Arguments = ctypes.c_int64 * 7
#: Rows of a weight that the kernel takes at a time.
VECTOR = 8
#: Rows of x up to which the kernel is faster than a product with the dequantized weight.
FEW = 16


class Packed:
    """See `contracts.PackedWeight`. A format says how values lie (`planes`) and reads them (`rows`)."""

    def __init__(self, *planes: Tensor | None, shape: tuple[int, int], bits: int) -> None:
        """planes: codes, scales, least, as `weights.kernel` wants them, their rows filled up to a multiple of
        VECTOR. shape: (N, K). bits: of a value.
        """
        self.shape, self.bits = shape, bits
        self._planes = [plane for plane in planes if plane is not None]
        self._n_rows = len(self._planes[0])
        self._here = self._planes[0].device.type == "cpu"
        self._calls: dict[int, tuple[Any, int, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Addresses are of this object's memory alone."""
        return {**vars(self), "_calls": {}}

    @property
    def nbytes(self) -> int:
        """What it takes of memory, bytes."""
        return sum(plane.nbytes for plane in self._planes)

    @property
    def device(self) -> torch.device:
        return self._planes[0].device

    def rows(self, index: Tensor) -> Tensor:
        """The values of some rows: index [...] -> [...,K] float32."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """All of them, [N,K] float32."""
        return self.rows(torch.arange(self.shape[0], device=self.device))

    def product(self, x: Tensor) -> Tensor:
        """x [...,K] -> [...,N], in x's dtype."""
        n_rows, columns = self.shape
        n_lines = x.numel() // columns
        if n_lines <= FEW and self._here and x.dtype == torch.float32 and _has_llvmlite():
            out = self._few(x.contiguous(), n_lines)
            if n_rows != self._n_rows:
                out = out[:, :n_rows].contiguous()
        else:
            out = F.linear(x.reshape(-1, columns), self.dense().to(x.dtype))
        return out.view(*x.shape[:-1], n_rows)

    def _few(self, x: Tensor, n_lines: int) -> Tensor:
        """x, contiguous, of so many rows -> [n_lines, rows of the planes] by the kernel."""
        out = x.new_empty(n_lines, self._n_rows)
        x_at, out_at = x.data_ptr(), out.data_ptr()
        for first in range(0, n_lines, MOST_ROWS):
            code, items, fixed = self._call(min(MOST_ROWS, n_lines - first))
            given = _Arguments.from_buffer_copy(fixed)
            given[X], given[OUT] = x_at + 4 * first * self.shape[1], out_at + 4 * first * self._n_rows
            on_threads(code.functions[ENTRY], ctypes.addressof(given), min(torch.get_num_threads(), items))
        return out

    def _call(self, x_rows: int) -> tuple[Any, int, Any]:
        """The loaded kernel for so many rows of x, its pieces of work, and the arguments that stay."""
        made = self._calls.get(x_rows)
        if made is None:
            code, items = _compiled(self._n_rows, self.shape[1], self.bits, x_rows)
            places = [plane.data_ptr() for plane in self._planes]
            fixed = _Arguments(0, 0, *places, *[0] * (3 - len(places)), 0, self._n_rows)
            made = self._calls[x_rows] = code, items, fixed
        return made


@functools.lru_cache(maxsize=256)
def _compiled(rows: int, columns: int, bits: int, x_rows: int) -> tuple[Compiled, int]:
    """The loaded kernel, and its pieces of work."""
    from dba_plugins.native.compiler import compiled
    from dba_plugins.weights.kernel import ProductSpec, build_module

    spec = ProductSpec(rows=rows, columns=columns, bits=bits, x_rows=x_rows)
    code = compiled(f"weights {spec!r}", lambda: build_module(spec), (ENTRY,), room=Path(__file__).parent)
    return code, spec.items


@functools.cache
def _has_llvmlite() -> bool:
    return importlib.util.find_spec("llvmlite") is not None
