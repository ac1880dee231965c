"""LLVM IR to machine code for this machine: a kernel is compiled once, and loaded once in a process.

Code on the disk (`object_files`) is named by everything that decides it: what is asked for, the source
that makes it, the versions of llvmlite and LLVM, the processor and its features.

In a process everyone who asks for the same gets the same loaded code. It stays for as long as somebody uses
it, and the `KEPT` that were asked for last stay anyway: memory does not grow with the number of caches.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_void_p
from pathlib import Path

import llvmlite
from llvmlite import binding, ir

from dba_plugins.native import object_files

#: Loaded codes that stay although nobody uses them.
KEPT = 64

#: Compiled functions take the address of an array of int64.
ENTRY = CFUNCTYPE(None, c_void_p)

_lock = threading.Lock()
_loaded: weakref.WeakValueDictionary[str, Compiled] = weakref.WeakValueDictionary()
_newest: OrderedDict[str, Compiled] = OrderedDict()


class Machine:
    """The processor that code is made for."""

    def __init__(self) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        self.triple = binding.get_process_triple()
        self.cpu = binding.get_host_cpu_name()
        features = binding.get_host_cpu_features()
        self.has_permute = bool(features.get("avx2"))
        self.features = features.flatten()

    def target_machine(self) -> binding.TargetMachine:
        target = binding.Target.from_triple(self.triple)
        return target.create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, reloc="pic", codemodel="small"
        )


@functools.cache
def machine() -> Machine:
    """Of this process."""
    return Machine()


class Compiled:
    """A loaded object: its functions live as long as it does."""

    def __init__(self, code: bytes, names: Sequence[str]) -> None:
        module = binding.parse_assembly("")
        self._engine = binding.create_mcjit_compiler(module, machine().target_machine())
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.functions = {name: ENTRY(self._engine.get_function_address(name)) for name in names}


def compiled(key: str, build: Callable[[], ir.Module], names: Sequence[str], *, room: Path) -> Compiled:
    """The functions `names` of the module that `build` makes; `key` says in words what it is.
    room: the folder of the code that makes it.
    """
    with _lock:
        code = _loaded.get(key)
        if code is None:
            code = _loaded[key] = Compiled(object_code(key, build, room=room), names)
        _newest[key] = code
        _newest.move_to_end(key)
        if len(_newest) > KEPT:
            _newest.popitem(last=False)
        return code


def object_code(key: str, build: Callable[[], ir.Module], *, room: Path) -> bytes:
    """The machine code of the module: from the disk, or made by `build` and kept there."""
    name = f"{_digest(key, room)}.o"
    code = object_files.read(name)
    if code is None:
        code = compile_module(build())
        object_files.write(name, code)
    return code


def compile_module(module: ir.Module) -> bytes:
    """Optimized machine code as an object file."""
    code: bytes = machine().target_machine().emit_object(optimized(module))
    return code


def assembly(module: ir.Module) -> str:
    """The same as text, to look at."""
    text: str = machine().target_machine().emit_assembly(optimized(module))
    return text


def optimized(module: ir.Module) -> binding.ModuleRef:
    module.triple = machine().triple
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    target = machine().target_machine()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = binding.create_pass_builder(target, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def _digest(key: str, room: Path) -> str:
    host = machine()
    parts = (key, _sources(room), llvmlite.__version__, repr(binding.llvm_version_info))
    text = "\n".join([*parts, host.triple, host.cpu, host.features])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@functools.cache
def _sources(room: Path) -> str:
    """A hash of the code that makes kernels."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, room):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _after_fork() -> None:
    """A thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
