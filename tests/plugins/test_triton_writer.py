"""The quantizing append in Triton: its bits by the interpreter, its machine code by offline compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.registry import Registry
from dba_plugins.bench.sass import read_machine_code
from dba_plugins.decode.triton import writer
from dba_plugins.decode.triton.offline import compile_kernel

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
]


HERE = Path(__file__).parent
CODES = {"fp32": "fp32", "fp16": "fp16", "bf16": "i16", "q8_0": "i8", "q4_0": "u8", "nf4": "u8"}


def test_the_interpreted_kernel_gives_the_bits_of_the_codecs() -> None:
    """The interpreter must be on when triton is imported, so a process of its own runs the cases."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_writer_interpreted.py"],
        cwd=HERE,
        env=environment | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def compiled(fmt: str, *, x: str = "fp16", width: int = 64, capability: int = 90):
    policy = KVCachePolicy.parse(f"ksem={fmt},kgeo={fmt},v={fmt},resid=32")
    sizes = (8, width)
    cache = LayerCache(
        registry=Registry.default(), k_sem=sizes, k_geo=sizes, v=sizes, batch=1, capacity=64, policy=policy
    )
    types = dict.fromkeys(writer.append_kernel.arg_names, "i32") | {
        "x_ptr": f"*{x}",
        "codes_ptr": f"*{CODES[fmt]}",
        "scales_ptr": "*i16",
        "ring_ptr": "*fp16",
        "lengths_ptr": "*i32",
        "bad_ptr": "*i32",
    }
    constants = writer.constants(cache.v)
    return compile_kernel(writer.append_kernel, types, constants, capability=capability, num_warps=1)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "nf4", "bf16"])
def test_it_compiles_without_spills(fmt: str, capability: int) -> None:
    listing = compiled(fmt, capability=capability)
    code = read_machine_code(listing.sass, listing.usage)
    assert code.spills == 0  # a few bytes of stack are the return address of the division
    assert code.registers <= 128


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0"])
def test_divisions_are_correctly_rounded_and_keep_small_numbers(fmt: str) -> None:
    """`.ftz` would take a denormal value for zero, which the codecs do not; `.full` is two units off."""
    ptx = compiled(fmt, x="fp32").ptx
    divisions = {line.split()[0] for line in ptx.splitlines() if line.strip().startswith("div.")}
    assert "div.rn.f32" in divisions
    assert not any(".ftz" in each or ".full" in each or ".approx" in each for each in divisions)


def test_one_compilation_serves_every_length_capacity_and_stride() -> None:
    """Triton compiles anew for a 1 and for a multiple of 16, unless it is told not to."""
    kernel, backend = writer.append_kernel, make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    planes = dict.fromkeys(("x_ptr", "codes_ptr", "scales_ptr", "ring_ptr", "lengths_ptr", "bad_ptr"))
    planes = {name: torch.zeros(64, dtype=torch.int32) for name in planes}
    policy = KVCachePolicy.parse("ksem=q4_0,kgeo=q8_0,v=q4_0,resid=32")
    keys = set()
    for capacity, size in ((1, 1), (16, 16), (17, 48), (131072, 2**30)):
        cache = LayerCache(
            registry=Registry.default(),
            k_sem=(2, 8),
            k_geo=(2, 16),
            v=(2, 8),
            batch=1,
            capacity=capacity,
            policy=policy,
            rollback=size % 64,
        )
        runtime = dict.fromkeys(writer.RUNTIME, size) | {"capacity": capacity}
        _, specialization, _ = bind(**planes, **runtime, **writer.constants(cache.v))
        keys.add(str(specialization))
    assert len(keys) == 1
