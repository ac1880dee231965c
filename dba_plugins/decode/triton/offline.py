"""Decode kernels compiled for GPUs that are not there, case by case, and their machine code as text.

`compile_kernel(kernel, types, constants, capability=90)` gives what `cuobjdump` of the triton package prints
for the cubin; `compiled_kernels` does so for the attend kernel, for `dba bench kernels`. The cases with
limits are those of q4_0/q8_0/q4_0 in blocks of 32, widths 32 and 64, values 64 and 128 wide. Needs triton,
neither a GPU nor a driver.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dba_plugins.bench.kernels import CompiledKernel
from dba_plugins.decode.triton.attend import NullParts
from dba_plugins.decode.triton.kernel import Planes, attend_kernel
from dba_plugins.decode.triton.spec import LEAST_ROWS, KernelSpec, TensorSpec

WARP = 32
_POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "q8_0": "*i8", "q4_0": "*u8", "nf4": "*u8"}
_QUERIES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
#: Of a block: one for its loads, and one for values, which ptxas loads after the first use and needs last.
MOST_WAITS = 2
_STUDIED = ("q4_0", "q8_0", "q4_0")


@attrs.frozen(kw_only=True)
class Case:
    """One layer's cache: formats and widths of k_sem, k_geo, v, and query heads per KV head."""

    formats: tuple[str, str, str] = _STUDIED
    widths: tuple[int, int, int] = (32, 64, 64)
    qblock: int = 32
    share: int = 4
    query: str = "float16"
    window: bool = False
    null: bool = False

    @property
    def name(self) -> str:
        more = [f"{self.share} heads a group", *(["window"] if self.window else [])]
        more += ["null"] if self.null else []
        more += [] if self.query == "float16" else [self.query]
        block = "" if self.qblock == 32 else f"@{self.qblock}"
        widths = "/".join(map(str, self.widths))
        return f"{'/'.join(self.formats)}{block} {widths}, {', '.join(more)}"

    @property
    def spec(self) -> KernelSpec:
        sem, geo, v = (
            TensorSpec(
                heads=8,
                width=width,
                format=fmt,
                qblock=self.qblock if fmt[0] in "qn" else 0,
                exact=self.query == "float32",
            )
            for fmt, width in zip(self.formats, self.widths, strict=True)
        )
        return KernelSpec(
            heads=8 * self.share,
            k_sem=sem,
            k_geo=geo,
            v=v,
            query=self.query,
            window=self.window,
        )

    @property
    def limits(self) -> tuple[int | None, float | None]:
        """Registers, and warp instructions per token."""
        if self.formats != _STUDIED or self.qblock != 32 or self.query != "float16" or self.share > 8:
            return None, None
        few = self.share < 4
        by_width = {(32, 64, 64): (136, 26.0 if few else 24.0), (32, 64, 128): (168, 34.0 if few else 32.0)}
        return by_width.get(self.widths, (None, None))


CASES = (
    Case(),
    Case(widths=(32, 64, 128)),
    Case(share=1),
    Case(share=1, widths=(32, 64, 128)),
    Case(window=True, null=True),
    Case(window=True, null=True, widths=(32, 64, 128)),
    Case(qblock=64),
    Case(formats=("q8_0", "q8_0", "q8_0")),
    Case(formats=("nf4", "nf4", "nf4")),
    Case(formats=("fp16", "fp16", "fp16")),
    Case(formats=("bf16", "bf16", "bf16"), query="bfloat16"),
    Case(share=16),
    Case(query="float32"),
)


def compiled_kernels(
    *, split: bool, capabilities: Sequence[int] = (80, 90, 100), cases: Sequence[Case] = CASES
) -> Iterator[CompiledKernel]:
    """Every case for every compute capability (90 for 9.0). split: as `triton_2pass` uses the kernel."""
    for case in cases:
        for capability in capabilities:
            yield _facts(
                case, capability, compile_case(case, split=split, capability=capability), split=split
            )


def compile_case(
    case: Case, *, split: bool, capability: int = 90, kernel: Any = attend_kernel, **changes: Any
) -> Listing:
    """changes: of the kernel's constants."""
    spec, tiling = case.spec, case.spec.tiling()
    types: dict[str, Any] = dict.fromkeys(kernel.arg_names, "i32")
    types |= {"lengths_ptr": "*i32", "state_ptr": "*fp32", "lse_ptr": "*fp32"}
    types |= {"null": NullParts(k_sem="*fp32", k_geo="*fp32", v="*fp32")}
    types |= dict.fromkeys(("q_sem_ptr", "q_geo_ptr", "out_ptr"), _QUERIES[case.query])
    for name, tensor in zip(("k_sem", "k_geo", "v"), spec.tensors, strict=True):
        types[name] = Planes(codes=_POINTERS[tensor.format], scales="*bf16", ring="*fp16")
    constants = {
        "LAYOUT": spec.layout(block=tiling.block),
        "NULL_HEADS": NullParts(k_sem=8, k_geo=8, v=8),
        "HAS_NULL": case.null and not split,
        "HAS_LSE": False,
        "SPLIT": split,
    }
    return compile_kernel(
        kernel,
        types,
        {name: value for name, value in (constants | changes).items() if name in kernel.arg_names},
        capability=capability,
        num_warps=tiling.warps,
        num_stages=1,
        maxnreg=tiling.registers,
    )


def _facts(case: Case, capability: int, listing: Listing, *, split: bool) -> CompiledKernel:
    spec, tiling = case.spec, case.spec.tiling()
    columns = spec.rows // LEAST_ROWS  # of a tensor-core instruction: 16 x 8 x 16
    layout = spec.layout(block=tiling.block)
    products = sum(tensor.width * tensor.terms for tensor in (layout.k_sem, layout.k_geo, layout.v))
    registers, per_token = case.limits
    return CompiledKernel(
        kernel="triton_2pass" if split else "triton_1pass",
        case=case.name,
        target=f"sm_{capability}",
        sass=listing.sass,
        usage=listing.usage,
        shared_bytes=listing.shared_bytes,
        tokens=tiling.block,
        warps=tiling.warps,
        tensor_core=products // 16 * (tiling.block // 16) * columns,
        scale_loads=sum(tensor.planes for tensor in spec.tensors),
        most_registers=registers,
        most_per_token=per_token,
        most_waits=None if registers is None else MOST_WAITS,
    )


@attrs.frozen(kw_only=True)
class Listing:
    """A kernel's PTX, SASS and resource usage as text; shared memory in bytes per block."""

    ptx: str
    sass: str
    usage: str
    shared_bytes: int


def compile_kernel(
    kernel: Any,
    types: Mapping[str, Any],
    constants: Mapping[str, Any],
    *,
    capability: int = 90,
    num_warps: int = 4,
    num_stages: int = 2,
    maxnreg: int | None = None,
) -> Listing:
    """Compile one variant for compute capability `capability` (80, 90, 100).

    types: of every argument that is not in `constants`, in Triton's spelling ("*fp16", "i32"); of a named
    tuple, a named tuple of them. Pointers count as aligned to 16 bytes, as the cache's planes are; whole
    numbers as nothing in particular, as arguments that are not specialized.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        path: [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        for path, kind in _leaves((position,), signature[name])
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, WARP),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg},
    )
    cubin = compiled.asm["cubin"]
    return Listing(
        ptx=compiled.asm["ptx"],
        sass=_cuobjdump("-sass", cubin),
        usage=_cuobjdump("-res-usage", cubin),
        shared_bytes=compiled.metadata.shared,
    )


def _leaves(path: tuple[int, ...], kind: str | tuple[str, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """The types of an argument, or of the parts of a tuple, with their places."""
    if isinstance(kind, str):
        yield path, kind
        return
    for number, part in enumerate(kind):
        yield (*path, number), part


def _cuobjdump(what: str, cubin: bytes) -> str:
    """What the tool prints about a cubin. Raises CalledProcessError where it cannot read it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), what, file.name],
            check=True,
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    return done.stdout
