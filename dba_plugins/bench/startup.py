"""Imports, and the first decoded token.

What a user waits for before anything is computed, each in a fresh process.

The compiled decode backend is timed with an empty folder of kernels and with a full one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import attrs

from dba_core.command import Command, command_line, summary_of
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.measured import measured, repeats

_DECODE = """
import time, torch
from dba_core import AttentionConfig, DecoupledAttention
config = AttentionConfig(d_model=512, n_heads=8, sem_head_dim=32, geo_head_dim=64, v_head_dim=64)
layer = DecoupledAttention(config)
x = torch.randn(1, 1, 512)
begun = time.perf_counter()
cache = layer.new_cache(batch=1, capacity=64, policy="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32")
layer(x, cache=cache)
print(time.perf_counter() - begun, layer.selections["decode_backend"].name)
"""
_CACHE_VARIABLE = "DBA_CACHE_DIR"


@attrs.frozen(kw_only=True)
class StartupBench:
    """How often."""

    repeats: int = repeats(5)


def run(request: StartupBench, reporter: Reporter) -> Report:
    """Time of imports, of `dba --help`, and of the first decoded token with and without compiled kernels.

    \b
    Examples:
      dba bench startup
    """
    repeats = request.repeats
    rows = [
        _row("python -c pass", [_process("-c", "pass") for _ in range(repeats)]),
        _row("import dba_core", [_process("-c", "import dba_core") for _ in range(repeats)]),
        _row("dba --help", [_process("-m", "dba_cli", "--help") for _ in range(repeats)]),
        _row("import torch", [_process("-c", "import torch") for _ in range(repeats)]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        cold, warm, backend = [], [], ""
        for number in range(repeats):
            where = os.path.join(folder, str(number))
            seconds, backend = _first_decode(where)
            cold.append(seconds)
            warm.append(_first_decode(where)[0])
    rows.append(_row(f"first decoded token, {backend}, kernels compiled", cold))
    rows.append(_row(f"first decoded token, {backend}, kernels on the disk", warm))
    return measured(
        name="startup",
        title="Start-up",
        command=command_line("bench.startup", request),
        columns=(
            Column("name", "what"),
            Column("seconds", "seconds", "{:.3f}"),
            Column("spread", "lowest to highest"),
        ),
        rows=tuple(rows),
        notes=(
            f"medians of {repeats} fresh processes",
            "the first decoded token counts from the making of the cache on: choice of the backend, its "
            "kernel, one token; imports are not in it",
        ),
    )


def _row(name: str, seconds: list[float]) -> dict[str, object]:
    return {
        "name": name,
        "seconds": statistics.median(seconds),
        "spread": f"{min(seconds):.3f} to {max(seconds):.3f}",
        "all_seconds": seconds,
    }


def _process(*args: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, capture_output=True)
    return time.perf_counter() - begun


def _first_decode(folder: str) -> tuple[float, str]:
    environment = {**os.environ, _CACHE_VARIABLE: folder}
    done = subprocess.run(
        [sys.executable, "-c", _DECODE], check=True, capture_output=True, encoding="utf-8", env=environment
    )
    seconds, backend = done.stdout.split()
    return float(seconds), backend


@hookimpl
def dba_command() -> Command[StartupBench]:
    return Command(
        name="bench.startup",
        contract=1,
        summary=summary_of(__doc__),
        request_class=StartupBench,
        run=run,
    )
