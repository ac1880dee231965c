"""What the decode kernels are compiled for: formats and sizes of heads, nothing of length or batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import attrs

from dba_core.contracts import CachedTensor, DecodeRequest

#: The formats whose codes and scales the kernels read and write themselves.
NATIVE = ("fp32", "fp16", "bf16", "q8_0", "q4_0", "nf4")
MAX_WIDTH = 256
#: The narrowest piece that a tensor core takes, and the widest that is worth it.
LEAST_PIECE, MOST_PIECE = 16, 64
#: Of a multiprocessor since compute capability 8.0: registers, programs at once; of a thread: registers.
MULTIPROCESSOR_REGISTERS, MOST_PROGRAMS, MOST_REGISTERS, WARP = 65536, 16, 256, 32
#: Query heads of one program: what a tensor core's instruction takes at least, and the most.
LEAST_ROWS, MOST_ROWS = 8, 16


class TensorLayout(NamedTuple):
    """One cached tensor as a compile-time constant of the kernels.

    piece: codes (bytes, for nibbles) of a piece. planes: scales of a head and token that are loaded. dtype:
    in which tiles are multiplied. tiles: of a head. terms: numbers of that dtype that a query, or a weight,
    is the sum of. See `TensorSpec`.
    """

    format: str
    heads: int
    width: int
    qblock: int
    piece: int
    planes: int
    dtype: str
    tiles: int
    terms: int

    @property
    def packed(self) -> bool:
        """Two codes to a byte."""
        return self.format in ("q4_0", "nf4")

    @property
    def row(self) -> int:
        """Elements of the codes of a head and token."""
        return (self.width + 1) // 2 if self.packed else self.width

    @property
    def blocks(self) -> int:
        """Scale planes of a row."""
        return -(-self.heads * self.width // self.qblock) if self.qblock else 0


class KernelLayout(NamedTuple):
    """What the attend kernel is compiled for. rows: columns of a program's scores. See `KernelSpec`.

    gpu: off in the interpreter, which multiplies bf16 wrongly and runs no assembly.
    """

    k_sem: TensorLayout
    k_geo: TensorLayout
    v: TensorLayout
    heads: int
    units: int
    chunks: int
    rows: int
    block: int
    has_ring: bool
    gpu: bool


@attrs.frozen(kw_only=True)
class TensorSpec:
    """One cached tensor: `heads` of `width` values each (0: an absent path).

    exact: to be multiplied as precisely as float32 queries are.
    """

    heads: int
    width: int
    format: str
    qblock: int
    exact: bool = False

    @classmethod
    def of(cls, tensor: CachedTensor, *, exact: bool) -> TensorSpec:
        """Absent paths count as fp16, so that no variant differs by the format of nothing."""
        has = tensor.head_dim > 0
        return cls(
            heads=tensor.n_heads,
            width=tensor.head_dim,
            format=tensor.format if has else "fp16",
            qblock=tensor.qblock if has else 0,
            exact=exact,
        )

    @property
    def quantized(self) -> bool:
        return self.qblock > 0

    @property
    def nibbles(self) -> bool:
        return self.format in ("q4_0", "nf4")

    @property
    def whole(self) -> bool:
        """Whether a head has one scale."""
        return self.quantized and self.width > 0 and self.qblock % self.width == 0

    @property
    def piece(self) -> int:
        """Codes (bytes, for nibbles) of a piece: one scale each, a power of two; 0 where there are none."""
        row = self.width // 2 if self.nibbles else self.width
        if (self.width % 2 and self.nibbles) or (self.exact and self.format == "nf4"):
            return 0  # the levels of nf4 are no fp16 numbers
        unit = math.gcd(row, MOST_PIECE)
        if self.quantized and not self.whole:
            unit = math.gcd(unit, self.qblock)
            if self.width % self.qblock:
                return 0  # blocks straddle heads
        return unit if unit >= LEAST_PIECE else 0

    @property
    def tiles(self) -> int:
        """Tiles that a head makes: two for each piece of nibbles."""
        if not self.piece:
            return 1 if self.width else 0
        return self.width // self.piece

    @property
    def planes(self) -> int:
        """Scales of a head and token that are loaded."""
        if not self.quantized or not self.piece:
            return 0
        return 1 if self.whole else self.width // self.qblock

    @property
    def dtype(self) -> str:
        """In which tiles are multiplied."""
        if self.format == "fp32" or (self.exact and not self.piece):
            return "fp32"
        return "bf16" if self.format == "bf16" else "fp16"

    def layout(self, *, terms: int) -> TensorLayout:
        """For the kernels."""
        return TensorLayout(
            format=self.format,
            heads=self.heads,
            width=self.width,
            qblock=self.qblock,
            piece=self.piece,
            planes=self.planes,
            dtype=self.dtype,
            tiles=self.tiles,
            terms=terms,
        )


@attrs.frozen(kw_only=True)
class Tiling:
    """block: tokens of a block. warps: of a program. registers: the most of a thread; None leaves it open."""

    block: int
    warps: int
    registers: int | None

    @property
    def programs(self) -> int:
        """Programs that the registers of a multiprocessor hold at once; where they are open, at the worst."""
        registers = WARP * self.warps * (self.registers or MOST_REGISTERS)
        return min(MOST_PROGRAMS, MULTIPROCESSOR_REGISTERS // registers)


@attrs.frozen(kw_only=True)
class KernelSpec:
    """heads: query heads H. query: dtype of the queries. window: whether a residual window is read."""

    heads: int
    k_sem: TensorSpec
    k_geo: TensorSpec
    v: TensorSpec
    query: str
    window: bool

    @classmethod
    def of(cls, request: DecodeRequest) -> KernelSpec:
        exact = request.dtype == "float32"
        sem, geo, v = (
            TensorSpec.of(tensor, exact=exact) for tensor in (request.k_sem, request.k_geo, request.v)
        )
        return cls(
            heads=request.shape.n_heads,
            k_sem=sem,
            k_geo=geo,
            v=v,
            query=request.dtype,
            window=request.residual_len > 0 and any(spec.quantized for spec in (sem, geo, v)),
        )

    @property
    def tensors(self) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        return self.k_sem, self.k_geo, self.v

    @property
    def units(self) -> int:
        """Programs per row and split: as many as keep one head of each tensor to a program."""
        most = math.lcm(*(tensor.heads for tensor in self.tensors if tensor.width))
        return most if self.heads % most == 0 else self.heads

    @property
    def share(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units

    @property
    def chunks(self) -> int:
        """Programs of a unit: each takes up to MOST_ROWS of its query heads."""
        return -(-self.share // MOST_ROWS)

    @property
    def rows(self) -> int:
        """Columns of a program's scores, one for each query head: a power of two."""
        share = -(-self.share // self.chunks)
        return max(LEAST_ROWS, 1 << (share - 1).bit_length())

    def tiling(self, *, block: int = 0, warps: int = 0) -> Tiling:
        """What suits the widths, where it is not given. Looked up in compiled code, not measured on a device.

        One warp to a program needs no barrier between warps. Up to 136 registers leave a multiprocessor room
        for 15 of them, up to 168 for 12.
        """
        width = sum(tensor.width for tensor in self.tensors)
        if any(tensor.width and not tensor.piece for tensor in self.tensors):
            best = Tiling(block=16, warps=1 if width <= 192 else 4, registers=None)
        elif width > 384:
            best = Tiling(block=16, warps=1, registers=None)
        else:
            best = Tiling(block=32, warps=1, registers=self._registers(width))
        if block in (0, best.block) and warps in (0, best.warps):
            return best
        return Tiling(block=block or best.block, warps=warps or best.warps, registers=None)

    def _registers(self, width: int) -> int | None:
        """The limit that code for q8_0 and q4_0 keeps without spilling."""
        plain = all(key.format in ("q8_0", "q4_0") and not key.exact for key in self.tensors if key.width)
        if not plain or self.rows > LEAST_ROWS or width > 224:
            return None
        return 136 if width <= 160 else 168

    def layout(self, *, block: int, gpu: bool = True) -> KernelLayout:
        """For `kernel.attend_kernel`."""
        return KernelLayout(
            k_sem=self.k_sem.layout(terms=self._query_terms(self.k_sem)),
            k_geo=self.k_geo.layout(terms=self._query_terms(self.k_geo)),
            v=self.v.layout(terms=self._weight_terms),
            heads=self.heads,
            units=self.units,
            chunks=self.chunks,
            rows=self.rows,
            block=block,
            has_ring=self.window,
            gpu=gpu,
        )

    def _query_terms(self, key: TensorSpec) -> int:
        """How many numbers of the tiles' dtype a query is the sum of, so that it loses nothing."""
        if key.dtype == "fp32":
            return 1
        if key.dtype == "bf16":
            return {"bfloat16": 1, "float16": 2, "float32": 3}[self.query]
        return 2 if key.exact else 1

    @property
    def _weight_terms(self) -> int:
        """The same for the weights. Where queries are no float32 these are rounded to fp16 once."""
        if self.v.dtype == "fp32":
            return 1
        return (2 if self.v.dtype == "bf16" else 1) + self.v.exact
