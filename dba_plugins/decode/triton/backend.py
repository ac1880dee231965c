"""The decode backends `triton_1pass` and `triton_2pass`: which launches a decoded token takes.

    1-pass  one program per KV head and row reads the cache, null token first, and writes the output. A long
            prefix can be cut into several launches, between which the state stays in memory.
    2-pass  many programs per KV head and row; a second launch merges their states and the null token.

Built by the plugins of those names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.contracts import DecodeOutput, KVLayer, NullKV, TokenWriter
from dba_plugins.decode.triton.launch import Step, attend, count_splits, merge
from dba_plugins.decode.triton.settings import OnePassOptions, TwoPassOptions
from dba_plugins.decode.triton.spec import KernelSpec
from dba_plugins.decode.triton.writer import TritonWriter

#: Where the device does not say: enough splits that a test has several.
_PROCESSORS = 4


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
