"""Starts the decode kernels: grid, splits, scratch. Nothing here waits for the device or reads a length.

The number of splits follows from the capacity and the device's multiprocessors, so that a CUDA graph can hold
the launches while the lengths grow. Scratch and output come from torch's allocator, which serves a capture
too. Called by `backend`.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
import triton
from torch import Tensor

from dba_core.contracts import DecodeOutput, KVLayer, NullKV
from dba_plugins.decode.triton.kernel import attend_kernel
from dba_plugins.decode.triton.merge import merge_kernel
from dba_plugins.decode.triton.settings import TritonOptions, TwoPassOptions, interpreted
from dba_plugins.decode.triton.spec import KernelSpec

#: States that the merge reads at a time.
MERGE_SPLITS = 32


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
    def null_planes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The null token's parts; the queries stand in where there is none and nothing is read."""
        if self.null is None:
            return self.q_geo, self.q_geo, self.q_geo
        return self.null.k_sem, self.null.k_geo, self.null.v

    @property
    def null_heads(self) -> tuple[int, int, int]:
        if self.null is None:
            return 1, 1, 1
        return len(self.null.k_sem), len(self.null.k_geo), len(self.null.v)


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

    splits 1: the null token too, and the output or, before the end, the state. More: all states.
    """
    cache, one = step.cache, splits == 1
    lse = output.lse
    tiling = spec.tiling(block=options.block, warps=options.warps)
    grid = (splits, spec.units * spec.chunks, cache.batch)
    attend_kernel[grid](
        step.q_sem,
        step.q_geo,
        *(plane for store in (cache.k_sem, cache.k_geo, cache.v) for plane in _planes(store)),
        cache.lengths_device,
        *step.null_planes,
        state,
        output.out,
        state if lse is None else lse,
        cache.capacity,
        max(1, cache.ring_size),
        cache.residual_len,
        begin,
        end,
        **spec.constants(block=tiling.block, has_lse=lse is not None and one, gpu=not interpreted()),
        NULL_HEADS=step.null_heads,
        HAS_NULL=step.null is not None and one,
        SPLIT=not one,
        num_warps=tiling.warps,
        num_stages=1,
        maxnreg=tiling.registers,
    )


def merge(spec: KernelSpec, step: Step, output: DecodeOutput, state: Tensor) -> None:
    """The states of all splits, and the null token, to the output."""
    lse, splits = output.lse, state.shape[2]
    sizes: dict[str, Any] = {"D_SEM": spec.k_sem.width, "D_GEO": spec.k_geo.width, "D_V": spec.v.width}
    merge_kernel[(spec.heads, step.cache.batch)](
        state,
        step.q_sem,
        step.q_geo,
        *step.null_planes,
        output.out,
        state if lse is None else lse,
        splits,
        **sizes,
        NULL_HEADS=step.null_heads,
        H=spec.heads,
        BLOCK=MERGE_SPLITS,
        HAS_NULL=step.null is not None,
        HAS_LSE=lse is not None,
        num_warps=4,
    )


def _planes(store: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and ring; the codes stand in for what a format has not, which is not read."""
    codes = store.codes
    scales = codes if store.scales is None else store.scales
    return codes, scales, codes if store.recent_ring is None else store.recent_ring


def count_splits(
    spec: KernelSpec, options: TwoPassOptions, *, batch: int, capacity: int, processors: int
) -> int:
    """Programs per row and KV head: as many as keep every multiprocessor busy, each with some blocks to read,
    and one more for what is left of a row and its residual window.
    """
    wanted = options.splits
    if not wanted:
        wanted = max(1, processors * options.programs // (batch * spec.units * spec.chunks))
        block = spec.tiling(block=options.block, warps=options.warps).block
        wanted = min(wanted, triton.cdiv(capacity, block * options.least_blocks))
    return wanted + 1
