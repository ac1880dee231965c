"""Compiles Triton kernels for a GPU that is not there, and takes their machine code as text.

`compile_kernel(kernel, types, constants, capability=90)` gives what `cuobjdump` of the triton
package prints for the cubin. Called by the tests; needs triton, neither a GPU nor a driver.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WARP = 32


@attrs.frozen(kw_only=True)
class Listing:
    """A kernel's PTX, SASS and resource usage as text; shared memory in bytes per block."""

    ptx: str
    sass: str
    usage: str
    shared_bytes: int


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    capability: int = 90,
    num_warps: int = 4,
    num_stages: int = 2,
    maxnreg: int | None = None,
) -> Listing:
    """Compile one variant for compute capability `capability` (80, 90, 100).

    types: of every argument that is not in `constants`, in Triton's spelling ("*fp16", "i32"). Pointers count
    as aligned to 16 bytes, as the cache's planes are; whole numbers as nothing in particular, as arguments
    that are not specialized.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, WARP),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg},
    )
    cubin = compiled.asm["cubin"]
    return Listing(
        ptx=compiled.asm["ptx"],
        sass=_cuobjdump("-sass", cubin),
        usage=_cuobjdump("-res-usage", cubin),
        shared_bytes=compiled.metadata.shared,
    )


def _cuobjdump(what: str, cubin: bytes) -> str:
    """What the tool prints about a cubin. Raises CalledProcessError where it cannot read it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), what, file.name],
            check=True,
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    return done.stdout
