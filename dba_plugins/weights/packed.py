"""A weight as it lies in memory, and the product with it: a few rows of x by the compiled kernel where that
can be had (float32 on the CPU), everything else with the weight as float32 for the length of the call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dba_plugins.native.compiler import Compiled

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
        lines = x.reshape(-1, self.shape[1])
        here = self.device.type == "cpu" and lines.dtype == torch.float32
        if here and len(lines) <= FEW and _has_llvmlite():
            out = self._few(lines.contiguous())
        else:
            out = F.linear(lines, self.dense().to(lines.dtype))
        return out.reshape(*x.shape[:-1], self.shape[0])

    def _few(self, x: Tensor) -> Tensor:
        """x [M,K] -> [M,N] by the kernel."""
        from dba_plugins.native.threads import on_threads
        from dba_plugins.weights.kernel import ENTRY, MOST_ROWS

        n_rows = len(self._planes[0])
        places = [plane.data_ptr() for plane in self._planes]
        places += [0] * (3 - len(places))
        out = x.new_empty(len(x), n_rows)
        for first in range(0, len(x), MOST_ROWS):
            part, made = x[first : first + MOST_ROWS], out[first : first + MOST_ROWS]
            code, items = _compiled(n_rows, self.shape[1], self.bits, len(part))
            given = (ctypes.c_int64 * 7)(0, part.data_ptr(), *places, made.data_ptr(), n_rows)
            on_threads(code.functions[ENTRY], ctypes.addressof(given), min(torch.get_num_threads(), items))
        return out[:, : self.shape[0]]


@functools.lru_cache(maxsize=256)
def _compiled(rows: int, columns: int, bits: int, x_rows: int) -> tuple[Compiled, int]:
    """The loaded kernel, and its pieces of work."""
    from dba_plugins.native.compiler import compiled
    from dba_plugins.weights.kernel import ENTRY, ProductSpec, build_module

    spec = ProductSpec(rows=rows, columns=columns, bits=bits, x_rows=x_rows)
    code = compiled(f"weights {spec!r}", lambda: build_module(spec), (ENTRY,), room=Path(__file__).parent)
    return code, spec.items


@functools.cache
def _has_llvmlite() -> bool:
    return importlib.util.find_spec("llvmlite") is not None
