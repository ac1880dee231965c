"""The plugin `triton_1pass`: one program per KV head and row. For large batches, and short caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dba_core.contracts import (
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeRequest,
    Reason,
    Support,
)
from dba_core.hookspecs import hookimpl
from dba_plugins.decode.triton.limits import OnePassOptions, reasons
from dba_plugins.decode.triton.spec import KernelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dba_plugins.bench.kernels import CompiledKernel

#: Tokens that are not worth a split.
SHORT = 512


class OnePassPlugin:
    name = "triton_1pass"
    contract = 1
    summary = "Triton, one launch: a program per KV head and row, null token first"
    options_class = OnePassOptions

    def supports(self, request: DecodeRequest, options: OnePassOptions) -> Support:
        against = tuple(reasons(request))
        return Support(against, () if against else _for_two_passes(request, options))

    def build(self, request: DecodeRequest, options: OnePassOptions) -> DecodeBackend:
        from dba_plugins.decode.triton.backend import (
            OnePassDecode,  # needs triton, which `supports` has found
        )

        return OnePassDecode(KernelSpec.of(request), options)

    def compiled_kernels(self) -> Iterator[CompiledKernel]:
        """For `dba bench kernels`; compiles as it goes, a few seconds each."""
        from dba_plugins.decode.triton.offline import compiled_kernels

        return compiled_kernels(split=False)


def _for_two_passes(request: DecodeRequest, options: OnePassOptions) -> tuple[Reason, ...]:
    """Why rows should be split: half of the programs that every multiprocessor holds keep it busy without."""
    spec = KernelSpec.of(request)
    programs = request.batch * spec.units * spec.chunks
    busy = max(1, spec.tiling(block=options.block, warps=options.warps).programs // 2)
    enough = busy * (request.multiprocessors or 1)
    if request.multiprocessors is None or programs >= enough or request.capacity <= SHORT:
        return ()
    return (
        Reason(
            subject="programs",
            got=f"{programs} (batch {request.batch}, {spec.units * spec.chunks} per row) for "
            f"{request.multiprocessors} multiprocessors and {request.capacity} tokens",
            supported=f"{enough} or more, or at most {SHORT} tokens",
            action="Splitting the rows keeps the device busy.",
        ),
    )


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return OnePassPlugin()
