"""Triton's interpreter, quicker: importing this module changes the interpreter of this process.

The interpreter replaces the functions of `triton.language` anew in every call of a device function, which is
half of its time, makes the same table for every operation, and copies every tensor back onto itself after a
launch. Where nothing is compiled beside it, replacing them once does; where all tensors are on the CPU, there
is nothing to copy.
"""

from __future__ import annotations

import functools
import types

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_numpy_type_of = functools.cache(interpreter._get_np_dtype)
_KEPT = interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))


def _nothing_to_replace(_function: object) -> interpreter._LangPatchScope:
    return interpreter._LangPatchScope()


def _numpy_type(dtype: tl.dtype) -> np.dtype:
    element = dtype.scalar
    return np.dtype(np.uint64) if isinstance(element, tl.pointer_type) else _numpy_type_of(element)


def _nothing_to_copy(*_: object) -> None: ...


interpreter._patch_lang = _nothing_to_replace
interpreter._get_np_dtype = _numpy_type
interpreter.GridExecutor._restore_args_dev = _nothing_to_copy
