"""The plugin `cpu`: what the compiled backend supports, and why not."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

from dba_core.contracts import (
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeRequest,
    NoOptions,
    Reason,
    Support,
)
from dba_core.distribution import install_command
from dba_core.hookspecs import hookimpl
from dba_plugins.decode.cpu.spec import FORMATS, MAX_SHARE, MAX_WIDTH, KernelSpec

_ELSE = "Choose decode_backend=streaming, or auto."


class CpuPlugin:
    name = "cpu"
    contract = 1
    summary = "compiled for this processor with LLVM: any format, any width up to 256, float32 queries"
    options_class = NoOptions

    def supports(self, request: DecodeRequest, options: NoOptions) -> Support:
        return Support(tuple(_reasons(request)))

    def build(self, request: DecodeRequest, options: NoOptions) -> DecodeBackend:
        # these need llvmlite, which `supports` has found
        from dba_plugins.decode.cpu.backend import CpuDecode, CpuWriter

        spec = KernelSpec.of(request)
        return CpuDecode(spec, writer=CpuWriter(spec))


def _reasons(request: DecodeRequest) -> Iterator[Reason]:
    if not _has_llvmlite():
        yield Reason(
            subject="llvmlite",
            got="not installed",
            supported="0.44 or later",
            action=f"Install it: {install_command('cpu')}",
        )
    if request.device.partition(":")[0] != "cpu":
        yield Reason(subject="device", got=request.device, supported="cpu", action=_ELSE)
    if request.dtype != "float32":
        yield Reason(
            subject="dtype of the queries",
            got=request.dtype,
            supported="float32",
            action=f"Run the model in float32. {_ELSE}",
        )
    spec = KernelSpec.of(request)
    for name, tensor in zip(("k_sem", "k_geo", "v"), spec.tensors, strict=True):
        if tensor.width > MAX_WIDTH:
            yield Reason(
                subject=f"width of {name}", got=str(tensor.width), supported=f"0 to {MAX_WIDTH}", action=_ELSE
            )
        if tensor.format not in FORMATS:
            yield Reason(
                subject=f"format of {name}",
                got=tensor.format,
                supported=", ".join(FORMATS),
                action="Choose one of these in the KV policy.",
            )
        if request.shape.n_heads % tensor.heads:
            yield Reason(
                subject=f"heads of {name}",
                got=f"{tensor.heads} for {request.shape.n_heads} query heads",
                supported="a divisor of the number of query heads",
                action="Choose n_kv_heads that divides n_heads.",
            )
    if spec.share > MAX_SHARE:
        yield Reason(
            subject="query heads per KV head",
            got=str(spec.share),
            supported=f"1 to {MAX_SHARE}",
            action=f"Choose more KV heads. {_ELSE}",
        )


@functools.cache
def _has_llvmlite() -> bool:
    return importlib.util.find_spec("llvmlite") is not None


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return CpuPlugin()
