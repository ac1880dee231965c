"""Counts the files of dba_core and dba_plugins that one token meets in an attention layer, way by way:

    python docs/gen/token_path.py

A file is met where a Python function of it is called (`sys.setprofile`), in a call like one that ran before:
what is built or chosen once is no part of a token's way. The layer is decoupled, with the mean
summarizer, without gate and null token; its cache holds fp16, decoded by the backend that is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

import dba_core
import dba_plugins
from dba_core import AttentionConfig, DecoupledAttention, LongSequenceConfig

#: The packages that are imported here, of a checkout or installed.
PACKAGES = [Path(next(iter(package.__path__))) for package in (dba_core, dba_plugins)]
#: The most files that each way may meet.
LIMITS = {"training": 6, "long path": 10, "prefill": 10, "decode": 10}
TOKENS = 24


def files_met(call: Callable[[], object]) -> tuple[str, ...]:
    """The files of our packages in which `call` enters a function, sorted."""
    found: set[str] = set()

    def look(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    met = [
        path.relative_to(package.parent).as_posix()
        for path in map(Path, found)
        for package in PACKAGES
        if package in path.parents
    ]
    return tuple(sorted(met))


def ways(*, backend: str = "cpu", policy: str = "ksem=fp16,kgeo=fp16,v=fp16") -> dict[str, tuple[str, ...]]:
    """The files on each way of a token through one layer."""
    near = _layer(backend)
    far = _layer(backend, LongSequenceConfig(threshold=TOKENS, mem_block=2, local_window=4, q_chunk=4))
    x = torch.randn(1, TOKENS, 64)
    cache = near.new_cache(batch=1, capacity=8 * TOKENS, policy=policy)
    calls: dict[str, Callable[[], object]] = {
        "training": lambda: _step(near.train(), x),
        "long path": lambda: _step(far.train(), x),
        "prefill": lambda: near.eval()(x, cache=cache),
        "decode": lambda: near.eval()(x[:, :1], cache=cache),
    }
    found = {}
    for way, call in calls.items():
        call()
        found[way] = files_met(call)
    return found


def _layer(backend: str, long: LongSequenceConfig | None = None) -> DecoupledAttention:
    config = AttentionConfig(d_model=64, n_heads=2, sem_head_dim=16, geo_head_dim=16, v_head_dim=32)
    return DecoupledAttention(
        config,
        gate="none",
        null_token="none",
        summarizer="mean",
        decode_backend=backend,
        train_long_seq=long,
    )


def _step(layer: DecoupledAttention, x: Tensor) -> None:
    layer(x).square().mean().backward()


if __name__ == "__main__":
    for way, files in ways().items():
        print(f"{way}: {len(files)} files, at most {LIMITS[way]}")
        for file in files:
            print(f"    {file}")
