"""The LLVM module of a whole kernel."""

from __future__ import annotations

from llvmlite import ir

from dba_plugins.decode.cpu.merge import emit_merge
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.cpu.tile import declare_tile, emit_tile
from dba_plugins.decode.cpu.work import emit_work

ENTRIES = ("decode_work", "decode_merge")


def build_module(spec: KernelSpec, *, has_permute: bool) -> ir.Module:
    """has_permute: the machine has AVX2's look-up in a register."""
    module = ir.Module(name="dba_decode")
    stored = declare_tile(module, "tile_stored")
    emit_tile(module, stored, spec, recent=False, has_permute=has_permute)
    recent = stored
    if spec.window:
        recent = declare_tile(module, "tile_recent")
        emit_tile(module, recent, spec, recent=True, has_permute=has_permute)
    emit_work(module, spec, stored, recent)
    emit_merge(module, spec)
    return module
