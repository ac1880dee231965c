"""LLVM IR to machine code for this machine, kept in a folder on the disk: a kernel is compiled once.

A file is named by everything that decides its content: what is asked for, the source of this package, the
versions of llvmlite and LLVM, the processor and its features. It is written whole or not at all, and carries
its own hash: one that is damaged is compiled again. Where the folder cannot be written, every process
compiles for itself (a fraction of a second per kernel).

Shared by the decode kernels and the writer.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_void_p
from pathlib import Path

import llvmlite
from llvmlite import binding, ir

#: The folder of the compiled kernels; without it, the user's cache folder.
CACHE_VARIABLE = "DBA_CACHE_DIR"
_MAGIC = b"DBAK1\n"
_DIGEST = 32

Entry = Callable[[int], None]
#: Compiled functions take the address of an array of int64.
ENTRY = CFUNCTYPE(None, c_void_p)

_lock = threading.Lock()


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


def compiled(key: str, build: Callable[[], ir.Module], names: Sequence[str]) -> Compiled:
    """The functions `names` of the module that `build` makes; `key` says in words what it is."""
    with _lock:
        path = cache_folder() / f"{_digest(key)}.o"
        code = _read(path)
        if code is None:
            code = compile_module(build())
            _write(path, code)
        return Compiled(code, names)


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


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "dba" / "kernels"


def _digest(key: str) -> str:
    host = machine()
    parts = (key, _sources(), llvmlite.__version__, repr(binding.llvm_version_info))
    text = "\n".join([*parts, host.triple, host.cpu, host.features])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@functools.cache
def _sources() -> str:
    """A hash of the code that makes kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    """The code in a cached file; None where there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST
    code = data[head:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : head] != hashlib.sha256(code).digest():
        return None
    return code


def _write(path: Path, code: bytes) -> None:
    """Best effort: a folder that cannot be written costs time, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(code).digest() + code)
        os.replace(name, path)
    except OSError:
        return
