"""The decode backend `cpu`: one call of the compiled kernel per token and layer.

What a call costs beside the kernel is one array of arguments, filled anew each time because tensors may move;
nothing of a cache is kept. Built by the plugin.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dba_core.contracts import DecodeOutput, KVLayer, NullKV, TokenWriter
from dba_plugins.decode.cpu.compiler import compiled, machine
from dba_plugins.decode.cpu.kernel import ENTRIES, build_module
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.threads import on_threads
from dba_plugins.decode.cpu.tile import STATE, TILE
from dba_plugins.decode.cpu.work import Arg

#: Tokens of a partition, and the fewest that are worth a partition of their own.
PARTITION, LEAST = 2048, 256
_ARRAY = ctypes.c_int64 * len(Arg)


class CpuDecode:
    """See the module. Thread-safe: every call has its own arguments and scratch.

    Made of `spec` alone, whatever the batch and the capacity. A copy, and what a pickle loads, is made anew
    of the same spec and so runs the same loaded code.
    """

    name = "cpu"
    fused_null = True

    def __init__(self, spec: KernelSpec, writer: TokenWriter | None = None) -> None:
        self.spec = spec
        self.writer = writer
        has_permute = machine().has_permute
        code = compiled(repr(spec), lambda: build_module(spec, has_permute=has_permute), ENTRIES)
        self._code = code
        self._run = code.functions["decode_work"]
        self._merge = code.functions["decode_merge"]

    def __reduce__(self) -> tuple[type[CpuDecode], tuple[KernelSpec, TokenWriter | None]]:
        return type(self), (self.spec, self.writer)

    @torch.no_grad()
    def decode(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: KVLayer,
        *,
        null: NullKV | None = None,
        needs_lse: bool = False,
    ) -> DecodeOutput:
        """q_sem [B,H,Ds], q_geo [B,H,Dg], scaled, float32 -> out [B,H,Dv] and, when asked for, lse [B,H]."""
        spec, batch = self.spec, cache.batch
        threads = torch.get_num_threads()
        size = _partition(cache.length, batch * spec.units, threads)
        parts = max(1, -(-cache.length // size))
        items = batch * spec.units * parts
        scratch = _new(items * spec.share * (STATE + spec.v.width))
        out = _new(batch, spec.heads, spec.v.width)
        lse = _new(batch, spec.heads) if needs_lse else None
        kept = [q_sem.contiguous(), q_geo.contiguous(), scratch]
        stores = cache.k_sem, cache.k_geo, cache.v
        given = _ARRAY(
            0,
            items,
            batch,
            parts,
            size,
            cache.lengths_device.data_ptr(),
            cache.residual_len,
            max(1, cache.ring_size),
            cache.capacity,
            kept[0].data_ptr(),
            kept[1].data_ptr(),
            *(store.codes.data_ptr() for store in stores),
            *(0 if store.scales is None else store.scales.data_ptr() for store in stores),
            *(0 if store.recent_ring is None else store.recent_ring.data_ptr() for store in stores),
        )
        given[Arg.SCRATCH], given[Arg.OUT] = scratch.data_ptr(), out.data_ptr()
        if lse is not None:
            given[Arg.LSE] = lse.data_ptr()
        if null is not None:
            nulls = [part.float().contiguous() for part in (null.k_sem, null.k_geo, null.v)]
            kept += nulls
            for number, part in enumerate(nulls):
                given[Arg.NULL_SEM + number] = part.data_ptr()
                given[Arg.NULL_HEADS + number] = len(part)
        address = ctypes.addressof(given)
        on_threads(self._run, address, min(threads, items))
        self._merge(address)
        return DecodeOutput(out=out, lse=lse)


def _new(*shape: int) -> Tensor:
    """What the kernel writes: its dtype and device, whatever the defaults of torch are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _partition(length: int, rows: int, threads: int) -> int:
    """Tokens of a partition: so many that every thread gets several pieces of work, a multiple of TILE."""
    size = PARTITION
    while size > LEAST and rows * -(-length // size) < 4 * threads:
        size //= 2
    assert size % TILE == 0
    return size
