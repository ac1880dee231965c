"""`TokenWriter` of the CPU backend: one pass over the tokens instead of some forty torch operations.

Serves float32 tokens; others are left to the cache, which stores them itself. Built by the plugin.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dba_core.contracts import KVLayer
from dba_plugins.decode.cpu.compiler import compiled
from dba_plugins.decode.cpu.encode import CHUNK, ENTRIES, N_ARGS, WriteArg, build_writer
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.threads import on_threads

_ARRAY = ctypes.c_int64 * N_ARGS


class CpuWriter:
    """See `contracts.TokenWriter`. Copied and pickled as its spec, like the backend."""

    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        code = compiled(f"writer {spec!r}", lambda: build_writer(spec), ENTRIES)
        self._code = code
        self._check, self._write = code.functions["write_check"], code.functions["write_tokens"]

    def __reduce__(self) -> tuple[type[CpuWriter], tuple[KernelSpec]]:
        return type(self), (self.spec,)

    def write(self, cache: KVLayer, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> bool:
        """k_sem [B,G,T,Ds], k_geo [B,G,T,Dg], v [B,G,T,Dv] -> whether they were stored."""
        inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (k_sem, k_geo, v)]
        if any(x.dtype != torch.float32 for x in inputs):
            return False
        stores = cache.k_sem, cache.k_geo, cache.v
        tokens = v.shape[2]
        items = len(v) * -(-tokens // CHUNK)
        ring = next((s.recent_ring.shape[2] for s in stores if s.recent_ring is not None), 1)
        given = [0, items, tokens, cache.lengths_device.data_ptr(), cache.capacity, ring, 0]
        for store, x in zip(stores, inputs, strict=True):
            given += [x.data_ptr(), *x.stride()[:3], store.codes.data_ptr()]
            given.append(0 if store.scales is None else store.scales.data_ptr())
            given.append(0 if store.recent_ring is None else store.recent_ring.data_ptr())
        arguments = _ARRAY(*given)
        address = ctypes.addressof(arguments)
        threads = min(torch.get_num_threads(), items)
        on_threads(self._check, address, threads)
        if arguments[WriteArg.BAD]:
            return False
        arguments[WriteArg.COUNTER] = 0
        on_threads(self._write, address, threads)
        return True
