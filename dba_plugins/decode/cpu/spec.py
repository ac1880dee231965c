"""What one kernel is compiled for. Lengths, capacity, batch and partitions are arguments of the kernel."""

from __future__ import annotations

import math

import attrs

from dba_core.contracts import CachedTensor, DecodeRequest

#: The formats whose codes and scales the kernels read and write themselves.
NATIVE = ("fp32", "fp16", "bf16", "q8_0", "q4_0", "nf4")
MAX_WIDTH = 256
MAX_SHARE = 64
#: Query heads whose scores are computed together: the converted values serve all of them.
GROUP = 4


@attrs.frozen(kw_only=True)
class TensorSpec:
    """One cached tensor: `heads` of `width` values each (0: an absent path)."""

    heads: int
    width: int
    format: str
    qblock: int

    @classmethod
    def of(cls, tensor: CachedTensor) -> TensorSpec:
        return cls(heads=tensor.n_heads, width=tensor.head_dim, format=tensor.format, qblock=tensor.qblock)

    @property
    def quantized(self) -> bool:
        return self.qblock > 0

    @property
    def nibbles(self) -> bool:
        return self.format in ("q4_0", "nf4")

    @property
    def row_bytes(self) -> int:
        """Bytes of one head of one token."""
        if self.nibbles:
            return (self.width + 1) // 2
        return self.width * {"fp32": 4, "fp16": 2, "bf16": 2, "q8_0": 1}[self.format]

    @property
    def n_blocks(self) -> int:
        """Scale planes of the tensor."""
        return -(-self.heads * self.width // self.qblock) if self.quantized and self.width else 0

    @property
    def as_recent(self) -> TensorSpec:
        """The same as the residual window holds it."""
        return attrs.evolve(self, format="fp16", qblock=0) if self.quantized else self


@attrs.frozen(kw_only=True)
class KernelSpec:
    """heads: query heads H. window: whether block formats have a residual window."""

    heads: int
    k_sem: TensorSpec
    k_geo: TensorSpec
    v: TensorSpec
    window: bool

    @classmethod
    def of(cls, request: DecodeRequest) -> KernelSpec:
        """Absent paths count as fp32, so that no variant differs by the format of nothing."""
        tensors = [
            spec if spec.width else attrs.evolve(spec, format="fp32", qblock=0)
            for spec in map(TensorSpec.of, (request.k_sem, request.k_geo, request.v))
        ]
        quantized = any(tensor.quantized for tensor in tensors)
        return cls(
            heads=request.shape.n_heads,
            k_sem=tensors[0],
            k_geo=tensors[1],
            v=tensors[2],
            window=quantized and request.residual_len > 0,
        )

    @property
    def tensors(self) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        return self.k_sem, self.k_geo, self.v

    @property
    def units(self) -> int:
        """Units of work per row: as many as keep one head of each tensor per unit."""
        counts = [tensor.heads for tensor in self.tensors if tensor.width]
        most = math.lcm(*counts)
        return most if self.heads % most == 0 else self.heads

    @property
    def share(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units
