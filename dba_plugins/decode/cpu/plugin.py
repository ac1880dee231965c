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
from dba_plugins.decode.cpu.spec import MAX_SHARE, MAX_WIDTH, NATIVE, KernelSpec
from dba_plugins.decode.tensor_limits import ELSE, tensor_reasons


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
        yield Reason(subject="device", got=request.device, supported="cpu", action=ELSE)
    if request.dtype != "float32":
        yield Reason(
            subject="dtype of the queries",
            got=request.dtype,
            supported="float32",
            action=f"Run the model in float32. {ELSE}",
        )
    spec = KernelSpec.of(request)
    yield from tensor_reasons(request, formats=NATIVE, most=MAX_WIDTH, least_geometric=0)
    if spec.share > MAX_SHARE:
        yield Reason(
            subject="query heads per KV head",
            got=str(spec.share),
            supported=f"1 to {MAX_SHARE}",
            action=f"Choose more KV heads. {ELSE}",
        )


@functools.cache
def _has_llvmlite() -> bool:
    return importlib.util.find_spec("llvmlite") is not None


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return CpuPlugin()
