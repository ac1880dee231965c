"""How close results must be to their oracle, by the dtype of the computation: one table for all tests.

`TOL` is for one attention or one layer; the state of every softmax is float32, so half precision differs by
the rounding of its inputs and outputs alone.
"""

from __future__ import annotations

TOL: dict[str, dict[str, float]] = {
    "float64": {"rtol": 1e-10, "atol": 1e-10},
    "float32": {"rtol": 1e-5, "atol": 1e-5},
    "float16": {"rtol": 5e-3, "atol": 5e-3},
    "bfloat16": {"rtol": 4e-2, "atol": 4e-2},
}

#: Relative L2 error of a layer's output when its cache is in this format (round trip of N(0,1), with margin).
FORMAT_ERROR: dict[str, float] = {
    "fp32": 1e-6,
    "fp16": 1e-3,
    "bf16": 8e-3,
    "q8_0": 1.5e-2,
    "q4_0": 2.5e-1,
    "nf4": 2.5e-1,
}
