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

#: Programs that keep a multiprocessor busy without splitting rows; tokens that are not worth a split.
BUSY, SHORT = 8, 512


class OnePassPlugin:
    name = "triton_1pass"
    contract = 1
    summary = "Triton, one launch: a program per KV head and row, null token first"
    options_class = OnePassOptions

    def supports(self, request: DecodeRequest, options: OnePassOptions) -> Support:
        against = tuple(reasons(request))
        return Support(against, () if against else _for_two_passes(request))

    def build(self, request: DecodeRequest, options: OnePassOptions) -> DecodeBackend:
        from dba_plugins.decode.triton.backend import (
            OnePassDecode,  # needs triton, which `supports` has found
        )

        return OnePassDecode(KernelSpec.of(request), options)

    def compiled_kernels(self) -> Iterator[CompiledKernel]:
        """For `dba bench kernels`; compiles as it goes, a few seconds each."""
        from dba_plugins.decode.triton.offline import compiled_kernels

        return compiled_kernels(split=False)


def _for_two_passes(request: DecodeRequest) -> tuple[Reason, ...]:
    """Why rows should be split: programs for every multiprocessor are worth a second launch."""
    spec = KernelSpec.of(request)
    programs = request.batch * spec.units * spec.chunks
    enough = BUSY * (request.multiprocessors or 1)
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
