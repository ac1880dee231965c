"""A compiled function on torch's threads, the calling one included:

    GNU OpenMP   `GOMP_parallel` of the library that torch computes with: the team that has just done a matrix
                 product, still awake, so that nothing is started and nothing competes with it
    elsewhere    a pool of Python threads, which ctypes lets run at the same time; also in a forked child,
                 where the team of the parent does not exist

A function is called once on every thread and shares its work through a counter of its own. A call returns, or
raises KeyboardInterrupt, only when all threads are done.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

_process = os.getpid()


def on_threads(entry: Any, arguments: int, count: int) -> None:
    """Call the ctypes function `entry` with the address `arguments` on `count` threads."""
    if count <= 1:
        entry(arguments)
        return
    team = _gnu_openmp() if os.getpid() == _process else None
    if team is not None:
        team(entry, arguments, count, 0)
        return
    _on_pool(entry, arguments, count)


def _on_pool(entry: Any, arguments: int, count: int) -> None:
    pool = _pool(os.getpid(), count - 1)
    others = [pool.submit(entry, arguments) for _ in range(count - 1)]
    try:
        entry(arguments)
    finally:
        wait(others)
    for other in others:
        other.result()


@functools.cache
def _gnu_openmp() -> Callable[[Any, int, int, int], None] | None:
    """GOMP_parallel(function, data, threads, flags) of torch's OpenMP library, None where it has another."""
    folder = Path(torch.__file__).parent / "lib"
    found = sorted(folder.glob("libgomp*.so*"))
    if "OpenMP" not in torch.__config__.parallel_info() or len(found) != 1:
        return None
    function = ctypes.CDLL(str(found[0])).GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """The pool of this process; a forked child makes its own."""
    with _pools_lock:
        if (process, size) not in _pools:
            _pools[process, size] = ThreadPoolExecutor(size, thread_name_prefix="dba-decode")
        return _pools[process, size]


def _after_fork() -> None:
    global _pools_lock
    _pools_lock = threading.Lock()
    _pools.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
