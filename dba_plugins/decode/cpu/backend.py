"""The decode backend `cpu` and its writer: one call of a compiled kernel per token and layer.

What does not change while a cache lives (addresses of its planes, sizes) is packed once for each cache; a
call copies that array and adds what is its own, so that several may run at once, on `native.threads`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dba_core.contracts import DecodeOutput, KVLayer, NullKV, TokenWriter
from dba_plugins.decode.cpu.encode import CHUNK, N_ARGS, WRITER_ENTRIES, TensorArg, WriteArg, build_writer
from dba_plugins.decode.cpu.kernel import ENTRIES, Arg, build_module
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.tile import STATE, TILE
from dba_plugins.native.compiler import compiled, machine
from dba_plugins.native.threads import on_threads

#: Tokens of a partition, and the fewest that are worth a partition of their own.
PARTITION, LEAST = 2048, 256
_DECODE_ARRAY = ctypes.c_int64 * len(Arg)
_WRITE_ARRAY = ctypes.c_int64 * N_ARGS
#: The code that makes these kernels.
_ROOM = Path(__file__).parent


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
        code = compiled(repr(spec), lambda: build_module(spec, has_permute=has_permute), ENTRIES, room=_ROOM)
        self._code = code
        self._run = code.functions["decode_work"]
        self._merge = code.functions["decode_merge"]
        self._units, self._heads, self._width = spec.units, spec.heads, spec.v.width
        self._state_size = spec.share * (STATE + spec.v.width)
        self._fixed: WeakKeyDictionary[KVLayer, ctypes.Array[ctypes.c_int64]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[CpuDecode], tuple[KernelSpec, TokenWriter | None]]:
        return type(self), (self.spec, self.writer)

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
        fixed = self._fixed.get(cache)
        if fixed is None:
            fixed = self._fixed[cache] = _decode_arguments(cache)
        given = _DECODE_ARRAY.from_buffer_copy(fixed)
        batch, length, threads = fixed[Arg.BATCH], cache.length, torch.get_num_threads()
        rows = batch * self._units
        size = _partition(length, rows, threads)
        parts = max(1, -(-length // size))
        items = rows * parts
        q_sem, q_geo = q_sem.contiguous(), q_geo.contiguous()
        # float32 on the CPU, as the queries are
        scratch = q_geo.new_empty(items * self._state_size, requires_grad=False)
        out = q_geo.new_empty((batch, self._heads, self._width), requires_grad=False)
        given[Arg.ITEMS], given[Arg.PARTS], given[Arg.PART_TOKENS] = items, parts, size
        given[Arg.Q_SEM], given[Arg.Q_GEO] = q_sem.data_ptr(), q_geo.data_ptr()
        given[Arg.SCRATCH], given[Arg.OUT] = scratch.data_ptr(), out.data_ptr()
        lse = q_geo.new_empty((batch, self._heads), requires_grad=False) if needs_lse else None
        if lse is not None:
            given[Arg.LSE] = lse.data_ptr()
        nulls = () if null is None else (null.k_sem, null.k_geo, null.v)
        held = [part.float().contiguous() for part in nulls]  # until the kernel has run
        for number, part in enumerate(held):
            given[Arg.NULL_SEM + number] = part.data_ptr()
            given[Arg.NULL_HEADS + number] = len(part)
        address = ctypes.addressof(given)
        on_threads(self._run, address, min(threads, items))
        self._merge(address)
        return DecodeOutput(out=out, lse=lse)


class CpuWriter:
    """See `contracts.TokenWriter`: one pass over the tokens instead of some forty torch operations.

    Serves float32 tokens; others are left to the cache, which stores them itself. Copied and pickled as its
    spec, like the backend.
    """

    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        code = compiled(f"writer {spec!r}", lambda: build_writer(spec), WRITER_ENTRIES, room=_ROOM)
        self._code = code
        self._check, self._write = code.functions["write_check"], code.functions["write_tokens"]
        self._fixed: WeakKeyDictionary[KVLayer, ctypes.Array[ctypes.c_int64]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[CpuWriter], tuple[KernelSpec]]:
        return type(self), (self.spec,)

    def write(self, cache: KVLayer, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> bool:
        """k_sem [B,G,T,Ds], k_geo [B,G,T,Dg], v [B,G,T,Dv] -> whether they were stored."""
        fixed = self._fixed.get(cache)
        if fixed is None:
            fixed = self._fixed[cache] = _write_arguments(cache)
        given = _WRITE_ARRAY.from_buffer_copy(fixed)
        held, at = [], int(WriteArg.TENSORS)
        for x in (k_sem, k_geo, v):
            if x.dtype != torch.float32:
                return False
            strides = x.stride()
            if strides[3] != 1:
                x = x.contiguous()
                strides = x.stride()
            held.append(x)  # until the kernel has run
            given[at] = x.data_ptr()
            given[at + 1], given[at + 2], given[at + 3] = strides[0], strides[1], strides[2]
            at += len(TensorArg)
        batch, _, tokens, _ = v.shape
        items = batch * -(-tokens // CHUNK)
        given[WriteArg.ITEMS], given[WriteArg.TOKENS] = items, tokens
        address = ctypes.addressof(given)
        threads = min(torch.get_num_threads(), items)
        run = on_threads if threads > 1 else _alone
        run(self._check, address, threads)
        if given[WriteArg.BAD]:
            return False
        given[WriteArg.COUNTER] = 0
        run(self._write, address, threads)
        return True


def _alone(entry: Callable[[int], object], arguments: int, _count: int) -> None:
    """A few tokens are not shared out."""
    entry(arguments)


def _decode_arguments(cache: KVLayer) -> ctypes.Array[ctypes.c_int64]:
    """What every call over this cache is given; its planes stay where they are while it lives."""
    given = _DECODE_ARRAY()
    given[Arg.BATCH], given[Arg.CAPACITY] = cache.batch, cache.capacity
    given[Arg.LENGTHS], given[Arg.RESIDUAL] = cache.lengths_device.data_ptr(), cache.residual_len
    given[Arg.RING_SIZE] = max(1, cache.ring_size)
    for number, store in enumerate((cache.k_sem, cache.k_geo, cache.v)):
        given[Arg.CODES + number] = _address(store.codes)
        given[Arg.SCALES + number] = _address(store.scales)
        given[Arg.RING + number] = _address(store.recent_ring)
    return given


def _write_arguments(cache: KVLayer) -> ctypes.Array[ctypes.c_int64]:
    """The same for the writer."""
    given = _WRITE_ARRAY()
    given[WriteArg.LENGTHS], given[WriteArg.CAPACITY] = cache.lengths_device.data_ptr(), cache.capacity
    given[WriteArg.RING_SIZE] = max(1, cache.ring_size)
    for number, store in enumerate((cache.k_sem, cache.k_geo, cache.v)):
        first = WriteArg.TENSORS + number * len(TensorArg)
        given[first + TensorArg.CODES] = _address(store.codes)
        given[first + TensorArg.SCALES] = _address(store.scales)
        given[first + TensorArg.RING] = _address(store.recent_ring)
    return given


def _address(plane: Tensor | None) -> int:
    return 0 if plane is None else plane.data_ptr()


def _partition(length: int, rows: int, threads: int) -> int:
    """Tokens of a partition: so many that every thread gets several pieces of work, a multiple of TILE."""
    size = PARTITION
    while size > LEAST and rows * -(-length // size) < 4 * threads:
        size //= 2
    assert size % TILE == 0
    return size
