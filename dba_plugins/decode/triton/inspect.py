"""The attend kernel compiled for GPUs that are not there, case by case, for `dba bench kernels --static`.

The cases with limits are those of q4_0/q8_0/q4_0 in blocks of 32, widths 32 and 64, values 64 and 128 wide.
Called by the plugins; needs triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from dba_core.contracts import CompiledKernel
from dba_plugins.decode.triton.kernel import attend_kernel
from dba_plugins.decode.triton.spec import LEAST_ROWS, KernelSpec, TensorSpec
from dba_plugins.decode.triton.static import Listing, compile_kernel

_POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "q8_0": "*i8", "q4_0": "*u8", "nf4": "*u8"}
_QUERIES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
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
        by_width = {(32, 64, 64): (128, 26.0 if few else 24.0), (32, 64, 128): (168, 34.0 if few else 32.0)}
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
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(
        ("null_sem_ptr", "null_geo_ptr", "null_v_ptr", "state_ptr", "lse_ptr"), "*fp32"
    )
    types |= dict.fromkeys(("q_sem_ptr", "q_geo_ptr", "out_ptr"), _QUERIES[case.query]) | {
        "lengths_ptr": "*i32"
    }
    for name, tensor in zip(("sem", "geo", "v"), spec.tensors, strict=True):
        types |= {
            f"{name}_codes_ptr": _POINTERS[tensor.format],
            f"{name}_scales_ptr": "*bf16",
            f"{name}_ring_ptr": "*fp16",
        }
    constants = spec.constants(block=tiling.block) | {
        "NULL_HEADS": (8, 8, 8),
        "HAS_NULL": case.null and not split,
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
    sem, geo, v = spec.constants(block=tiling.block)["TERMS"]
    products = spec.k_sem.width * sem + spec.k_geo.width * geo + spec.v.width * v
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
    )
