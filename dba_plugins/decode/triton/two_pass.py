"""The plugin `triton_2pass`: rows are split over many programs, a second launch merges. For long caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dba_core.contracts import (
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeRequest,
    Support,
)
from dba_core.hookspecs import hookimpl
from dba_plugins.decode.triton.limits import TwoPassOptions, reasons
from dba_plugins.decode.triton.spec import KernelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dba_plugins.bench.kernels import CompiledKernel


class TwoPassPlugin:
    name = "triton_2pass"
    contract = 1
    summary = "Triton, two launches: rows are split, the null token is one more partition of the merge"
    options_class = TwoPassOptions

    def supports(self, request: DecodeRequest, options: TwoPassOptions) -> Support:
        return Support(tuple(reasons(request)))

    def build(self, request: DecodeRequest, options: TwoPassOptions) -> DecodeBackend:
        from dba_plugins.decode.triton.backend import (
            TwoPassDecode,  # needs triton, which `supports` has found
        )

        return TwoPassDecode(KernelSpec.of(request), options, processors=request.multiprocessors)

    def compiled_kernels(self) -> Iterator[CompiledKernel]:
        """For `dba bench kernels`; compiles as it goes, a few seconds each."""
        from dba_plugins.decode.triton.offline import compiled_kernels

        return compiled_kernels(split=True)


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return TwoPassPlugin()
