"""Which build of torch computes, and which instruction set each of its libraries takes on this processor.

A library chooses by the processor's maker too, so it is asked: a child process with its own log on does one
matrix product and one convolution, and what the libraries say of themselves is read.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

_PROBE = (
    "import torch; a = torch.ones(64, 64); a @ a; "
    "torch.nn.functional.conv2d(a.view(4, 16, 8, 8), torch.ones(16, 16, 3, 3)); "
    "print(torch.__config__.show())"
)
_LOGS = {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
#: What can be set to make them take another instruction set.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA")


@functools.cache
def torch_build() -> str:
    """One line: torch 2.13.0+cpu, vector code AVX2; oneMKL 2024.0 for ...; oneDNN 3.12.0 for Intel AVX2."""
    import torch

    told = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**os.environ, **_LOGS},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    parts = [
        f"torch {torch.__version__}, vector code {torch.backends.cpu.get_cpu_capability()}",
        *libraries(told),
    ]
    set_ = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return "; ".join(parts + set_)


def libraries(told: str) -> list[str]:
    """Name, version and instruction set of each library, from their logs and torch's configuration."""
    found = []
    mkl = re.search(r"MKL_VERBOSE oneMKL (\d[\w.]*(?: Update \d+)?).*?64 architecture (.+?),", told)
    if mkl:
        found.append(f"oneMKL {mkl[1]} for {mkl[2]}")
    elif "Math Kernel Library" not in told:
        blas = re.search(r"BLAS_INFO=(\w+)", told)
        found.append(f"no MKL, BLAS {blas[1] if blas else 'unknown'}")
    version = re.search(r"MKL-DNN v([\w.]+)", told)
    isa = re.search(r"onednn_verbose,.*?cpu,isa:([^\n]+)", told)
    if version:
        found.append(f"oneDNN {version[1]} for {isa[1] if isa else 'nothing that was tried'}")
    return found
