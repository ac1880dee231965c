"""The decode backends `triton_1pass` and `triton_2pass`: which launches a decoded token takes.

    1-pass  one program per KV head and row reads the cache, null token first, and writes the output. A long
            prefix can be cut into several launches, between which the state stays in memory.
    2-pass  many programs per KV head and row; a second launch merges their states and the null token.

Nothing here waits for the device or reads a length. The number of splits follows from the capacity and the
device's multiprocessors, so that a CUDA graph can hold the launches while the lengths grow. Scratch and
output come from torch's allocator, which serves a capture too.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from dba_core.contracts import DecodeOutput, KVLayer, KVTensor, NullKV, TokenWriter
from dba_plugins.decode.triton.attend import NullParts
from dba_plugins.decode.triton.kernel import Planes, attend_kernel, merge_kernel
from dba_plugins.decode.triton.limits import OnePassOptions, TritonOptions, TwoPassOptions
from dba_plugins.decode.triton.spec import KernelSpec
from dba_plugins.decode.triton.writer import TritonWriter

#: States that the merge reads at a time, and its warps: few steps that wait for one another, and no spills.
MERGE_SPLITS, MERGE_WARPS = 128, 8
#: Where the device does not say: enough splits that a test has several.
_PROCESSORS = 4


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """One decode call: the queries [B,H,Ds] and [B,H,Dg], contiguous, and what they meet."""

    q_sem: Tensor
    q_geo: Tensor
    cache: KVLayer
    null: NullKV | None
    needs_lse: bool

    @classmethod
    def of(
        cls, q_sem: Tensor, q_geo: Tensor, cache: KVLayer, null: NullKV | None, *, needs_lse: bool
    ) -> Step:
        if null is not None:
            k_sem, k_geo, v = (x.float().contiguous() for x in (null.k_sem, null.k_geo, null.v))
            null = NullKV(k_sem=k_sem, k_geo=k_geo, v=v)
        return cls(
            q_sem=q_sem.contiguous(),
            q_geo=q_geo.contiguous(),
            cache=cache,
            null=null,
            needs_lse=needs_lse,
        )

    def new_output(self) -> DecodeOutput:
        batch, heads, _ = self.q_geo.shape
        return DecodeOutput(
            out=self.q_geo.new_empty(batch, heads, self.cache.v.head_dim),
            lse=self.q_geo.new_empty(batch, heads, dtype=torch.float32) if self.needs_lse else None,
        )

    def new_state(self, splits: int) -> Tensor:
        """Scratch for the states of all splits: [B,H,splits,Dv+2] float32."""
        batch, heads, _ = self.q_geo.shape
        return self.q_geo.new_empty(batch, heads, splits, self.cache.v.head_dim + 2, dtype=torch.float32)

    @property
    def null_parts(self) -> NullParts:
        """The null token; the queries stand in where there is none and nothing is read."""
        if self.null is None:
            return NullParts(self.q_geo, self.q_geo, self.q_geo)
        return NullParts(self.null.k_sem, self.null.k_geo, self.null.v)

    @property
    def null_heads(self) -> NullParts:
        if self.null is None:
            return NullParts(1, 1, 1)
        return NullParts(len(self.null.k_sem), len(self.null.k_geo), len(self.null.v))


class _TritonDecode:
    """What both have in common. Keeps nothing of a cache; every launch reads the lengths on the device."""

    fused_null = True

    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        self.writer: TokenWriter | None = TritonWriter()

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
        """q_sem [B,H,Ds], q_geo [B,H,Dg], scaled -> out [B,H,Dv] and, when asked for, lse [B,H]."""
        step = Step.of(q_sem, q_geo, cache, null, needs_lse=needs_lse)
        output = step.new_output()
        self._launch(step, output)
        return output

    def _launch(self, step: Step, output: DecodeOutput) -> None:
        raise NotImplementedError


class OnePassDecode(_TritonDecode):
    """See the module."""

    name = "triton_1pass"

    def __init__(self, spec: KernelSpec, options: OnePassOptions) -> None:
        super().__init__(spec)
        self.options = options

    def _launch(self, step: Step, output: DecodeOutput) -> None:
        capacity = step.cache.capacity
        block = self.spec.tiling(block=self.options.block, warps=self.options.warps).block
        size = -(-self.options.tokens_per_launch // block) * block or capacity
        state = step.new_state(1)
        for begin in range(0, capacity, size):
            end = min(begin + size, capacity)
            attend(self.spec, self.options, step, output, state, splits=1, begin=begin, end=end)


class TwoPassDecode(_TritonDecode):
    """See the module. The number of splits follows from the capacity: it is the same at every length."""

    name = "triton_2pass"

    def __init__(self, spec: KernelSpec, options: TwoPassOptions, *, processors: int | None) -> None:
        super().__init__(spec)
        self.options = options
        self.processors = processors or _PROCESSORS

    def _launch(self, step: Step, output: DecodeOutput) -> None:
        cache = step.cache
        splits = count_splits(
            self.spec, self.options, batch=cache.batch, capacity=cache.capacity, processors=self.processors
        )
        state = step.new_state(splits)
        attend(self.spec, self.options, step, output, state, splits=splits, begin=0, end=cache.capacity)
        merge(self.spec, step, output, state)


def attend(
    spec: KernelSpec,
    options: TritonOptions,
    step: Step,
    output: DecodeOutput,
    state: Tensor,
    *,
    splits: int,
    begin: int,
    end: int,
) -> None:
    """Tokens begin..end-1 as stored, and the rest of every row where `end` is the capacity.

    splits 1: the null token too, and the output or, before the end, the state. More: all states, of which the
    null token is none: whether there is one changes nothing that the kernel is compiled for.
    """
    cache, one = step.cache, splits == 1
    null, null_heads = NullParts(state, state, state), NullParts(1, 1, 1)
    if one:
        null, null_heads = step.null_parts, step.null_heads
    lse = output.lse
    tiling = spec.tiling(block=options.block, warps=options.warps)
    grid = (splits, spec.units * spec.chunks, cache.batch)
    attend_kernel[grid](
        step.q_sem,
        step.q_geo,
        _planes(cache.k_sem),
        _planes(cache.k_geo),
        _planes(cache.v),
        cache.lengths_device,
        null,
        state,
        output.out,
        state if lse is None else lse,
        cache.capacity,
        max(1, cache.ring_size),
        cache.residual_len,
        begin,
        end,
        LAYOUT=spec.layout(block=tiling.block, gpu=not interpreted()),
        NULL_HEADS=null_heads,
        HAS_NULL=step.null is not None and one,
        HAS_LSE=lse is not None and one,
        SPLIT=not one,
        num_warps=tiling.warps,
        num_stages=1,
        maxnreg=tiling.registers,
    )


def merge(spec: KernelSpec, step: Step, output: DecodeOutput, state: Tensor) -> None:
    """The states of all splits, and the null token, to the output."""
    lse, splits = output.lse, state.shape[2]
    merge_kernel[(spec.heads, step.cache.batch)](
        state,
        step.q_sem,
        step.q_geo,
        step.null_parts,
        output.out,
        state if lse is None else lse,
        splits,
        LAYOUT=spec.layout(block=0),
        NULL_HEADS=step.null_heads,
        BLOCK=MERGE_SPLITS,
        HAS_NULL=step.null is not None,
        HAS_LSE=lse is not None,
        num_warps=MERGE_WARPS,
    )


def _planes(store: KVTensor) -> Planes:
    """Codes, scales and ring; the codes stand in for what a format has not, which is not read."""
    codes = store.codes
    scales = codes if store.scales is None else store.scales
    return Planes(codes, scales, codes if store.recent_ring is None else store.recent_ring)


def count_splits(
    spec: KernelSpec, options: TwoPassOptions, *, batch: int, capacity: int, processors: int
) -> int:
    """Programs per row and KV head: as many as the device holds at once, each with some blocks to read, and
    the last for what is left of a row and its residual window.
    """
    wanted = options.splits
    if not wanted:
        tiling = spec.tiling(block=options.block, warps=options.warps)
        held = processors * (options.programs or tiling.programs)
        wanted = max(1, held // (batch * spec.units * spec.chunks) - 1)
        wanted = min(wanted, triton.cdiv(capacity, tiling.block * options.least_blocks))
    return wanted + 1


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU (TRITON_INTERPRET=1 before triton was imported)."""
    kernel: Any = attend_kernel
    return not isinstance(kernel, JITFunction)
