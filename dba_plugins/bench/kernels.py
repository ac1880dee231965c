"""Machine code of the GPU kernels, without a GPU.

A decode backend's plugin that is a `CompilesOffline` is asked for them. Each is read by `sass` and
held to its limits: no spill, no 1-byte load, in the main loop 2-byte loads for scales alone and all of them
before the first barrier, tensor-core instructions as many as the shapes need, registers, warp instructions
per token and waits for memory per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.distribution import install_command
from dba_core.errors import UsageError
from dba_core.hookspecs import hookimpl
from dba_core.registry import Registry
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.measured import measured
from dba_plugins.bench.sass import (
    MachineCode,
    load_bytes,
    loads_before_barrier,
    memory_waits,
    read_machine_code,
)

COLUMNS = (
    Column("kernel", "kernel"),
    Column("case", "case"),
    Column("target", "target"),
    Column("registers", "registers"),
    Column("spills", "spills"),
    Column("shared_bytes", "shared bytes", "{:,}"),
    Column("loads", "loads (bytes)"),
    Column("before_barrier", "global loads before the first barrier"),
    Column("waits", "waits per block"),
    Column("tensor_core", "tensor core"),
    Column("per_token", "instructions per token", "{:.1f}"),
    Column("limit", "limit"),
    Column("verdict", "verdict"),
)


@attrs.frozen(kw_only=True)
class CompiledKernel:
    """A GPU kernel compiled for a device that need not be there.

    sass, usage: what `cuobjdump -sass` and `-res-usage` print. tokens: cached tokens that one round of the
    main loop takes, warps: of the program that does. tensor_core: how many tensor-core instructions a round
    needs; scale_loads: how many loads of scales. most_registers, most_per_token, most_waits: what must not be
    exceeded (None: no limit): per token in warp instructions, waits for global memory in a round.
    """

    kernel: str
    case: str
    target: str
    sass: str
    usage: str
    shared_bytes: int
    tokens: int
    warps: int
    tensor_core: int
    scale_loads: int
    most_registers: int | None = None
    most_per_token: float | None = None
    most_waits: int | None = None


@runtime_checkable
class CompilesOffline(Protocol):
    """What a decode backend's plugin has beside its contract, where its kernels can be read without a GPU."""

    def compiled_kernels(self) -> Iterator[CompiledKernel]:
        """Compiles as it goes."""
        ...


@attrs.frozen(kw_only=True)
class KernelsBench:
    """backend: names; all that have kernels where none is named."""

    static: bool = option(
        False, help="Compile for sm_80, sm_90 and sm_100 and read the machine code; nothing is run."
    )
    check: bool = option(False, help="Exit with an error where a limit is exceeded.")
    backend: tuple[str, ...] = option(
        (), help="Decode backends.", without="all that have any", offers="backend_list"
    )


def run(request: KernelsBench, reporter: Reporter) -> Report:
    """Registers, spills, loads and instructions per cached token of the decode kernels.

    \b
    Examples:
      dba bench kernels --static
      dba bench kernels --static --check --backend triton_2pass
    """
    if not request.static:
        raise UsageError(
            "dba bench kernels reads machine code only: give --static; for times on a GPU, use "
            "dba bench decode --device cuda"
        )
    rows = []
    for kernel in _kernels(request.backend, Registry.default()):
        reporter.note(f"{kernel.kernel}, {kernel.case}, {kernel.target} ...")
        rows.append(kernel_row(kernel))
    failed = sum(bool(row["failures"]) for row in rows)
    report = measured(
        name="kernels",
        title="Machine code of the decode kernels",
        command=command_line("bench.kernels", request),
        columns=COLUMNS,
        rows=rows,
        notes=(
            "compiled offline; nothing here was run on a GPU",
            "loads: global loads of the main loop by bytes per thread, as count x bytes",
            "tensor core, instructions: of the main loop; per token: of all warps of a program",
            "before the first barrier: how many of the main loop's global loads are; the layout "
            "conversions behind it need barriers, which loads do not pass",
            "waits: how often a round waits for global memory, where loads that are on their way at once "
            "arrive at once",
            "limit: registers, warp instructions per token, waits; with it, no spills, no 1-byte loads, in "
            "the main loop 2-byte loads for scales alone, and all of its loads before its first barrier",
        ),
    )
    if not (request.check and failed):
        return report
    return attrs.evolve(report, failed=f"{failed} of {len(rows)} kernels exceed a limit; see their verdicts")


def kernel_row(kernel: CompiledKernel) -> dict[str, Any]:
    """One row; `failures` says which limits are exceeded."""
    code = read_machine_code(kernel.sass, kernel.usage)
    loop = code.main_loop
    loads = _loads(code)
    per_token = len(loop) * kernel.warps / kernel.tokens
    limit = None
    if None not in (kernel.most_registers, kernel.most_per_token, kernel.most_waits):
        limit = f"{kernel.most_registers}, {kernel.most_per_token:g}, {kernel.most_waits}"
    failures = tuple(_failures(kernel, code, loads, per_token))
    return {
        "kernel": kernel.kernel,
        "case": kernel.case,
        "target": kernel.target,
        "registers": code.registers,
        "spills": code.spills,
        "shared_bytes": kernel.shared_bytes,
        "loads_by_bytes": {str(width): count for width, count in loads.items()},
        "loads": ", ".join(f"{count}x{width}" for width, count in loads.items()),
        "before_barrier": f"{loads_before_barrier(loop)} of {sum(loads.values())}",
        "waits": memory_waits(loop),
        "tensor_core": sum(each.is_tensor_core for each in loop),
        "tensor_core_needed": kernel.tensor_core,
        "instructions": len(loop),
        "per_token": per_token,
        "limit": limit,
        "failures": list(failures),
        "verdict": "; ".join(failures) or ("within" if limit else "no limit"),
    }


def _loads(code: MachineCode) -> dict[int, int]:
    """Global loads of the main loop."""
    found: dict[int, int] = {}
    for each in code.main_loop:
        if each.is_global_load:
            found[load_bytes(each)] = found.get(load_bytes(each), 0) + 1
    return dict(sorted(found.items()))


def _failures(
    kernel: CompiledKernel, code: MachineCode, loads: dict[int, int], per_token: float
) -> Iterator[str]:
    found = sum(each.is_tensor_core for each in code.main_loop)
    if found != kernel.tensor_core:
        yield f"{found} tensor-core instructions, {kernel.tensor_core} needed"
    if kernel.most_registers is None or kernel.most_per_token is None:
        return
    if code.spills:
        yield f"{code.spills} spills"
    if 1 in code.global_loads:
        yield f"{code.global_loads[1]} loads of 1 byte"
    if loads.get(2, 0) > kernel.scale_loads:
        yield f"{loads[2]} loads of 2 bytes, {kernel.scale_loads} scales"
    if code.registers > kernel.most_registers:
        yield f"{code.registers} registers"
    if per_token > kernel.most_per_token:
        yield f"{per_token:.1f} instructions per token"
    early = loads_before_barrier(code.main_loop)
    if early < sum(loads.values()):
        yield f"{early} of {sum(loads.values())} loads before the first barrier"
    waits = memory_waits(code.main_loop)
    if kernel.most_waits is not None and waits > kernel.most_waits:
        yield f"{waits} waits per block"


def _kernels(names: tuple[str, ...], registry: Registry) -> Iterator[CompiledKernel]:
    asked = names or tuple(
        dict.fromkeys(info.qualified for info in registry.list("decode_backend") if info.problem is None)
    )
    found = False
    for name in asked:
        plugin: object = registry.load("decode_backend", name).plugin
        if not isinstance(plugin, CompilesOffline):
            if names:
                raise UsageError(f"decode backend {name!r} has no kernels that can be compiled without a GPU")
            continue
        found = True
        try:
            yield from plugin.compiled_kernels()
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the kernels of {name!r} need {error.name}, which is not installed; install it: "
                + install_command("triton")
            ) from error
    if not found:
        raise UsageError("no decode backend here has kernels that can be compiled without a GPU")


@hookimpl
def dba_command() -> Command[KernelsBench]:
    return Command(
        name="bench.kernels",
        contract=1,
        summary=summary_of(__doc__),
        request_class=KernelsBench,
        run=run,
    )
