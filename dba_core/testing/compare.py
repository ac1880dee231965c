"""Comparisons that answer with violations: closeness by dtype, equality of bits, inputs left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dba_core.testing.subject import Violation, torch_dtype

#: |got - expected| <= x + x |expected|, by the dtype of the inputs. Sums and softmax are float32 inside: half
#: precision differs by the rounding of one result, and float64 is no closer than float32.
TOLERANCE: dict[str, float] = {"float64": 1e-5, "float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


def far(got: Tensor, expected: Tensor, *, dtype: str) -> str | None:
    """How `got` differs from the oracle by more than the dtype allows; None when it does not. NaN differs."""
    if got.shape != expected.shape:
        return f"shape {list(got.shape)} instead of {list(expected.shape)}"
    limit = TOLERANCE[dtype]
    mine, oracle = got.detach().double().cpu(), expected.detach().double().cpu()
    same = mine == oracle  # infinities of one sign
    wrong = ~(same | ((mine - oracle).abs() <= limit + limit * oracle.abs()))
    if not wrong.any():
        return None
    where = [int(i) for i in wrong.nonzero()[0]]
    a, b = mine[tuple(where)].item(), oracle[tuple(where)].item()
    return f"{a:.6g} for {b:.6g} at {where}; {int(wrong.sum())} of {wrong.numel()} values differ"


def near(
    case: object, got: Tensor, expected: Tensor, *, dtype: str, what: str, hint: str = ""
) -> Iterator[Violation]:
    """A violation where `far` finds a difference."""
    difference = far(got, expected, dtype=dtype)
    if difference is not None:
        yield Violation(case, f"{what} within {TOLERANCE[dtype]:g}", difference, hint)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and values, a NaN being equal to a NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool((torch.eq(a, b) | (torch.ne(a, a) & torch.ne(b, b))).all())
    )


def well_shaped(
    case: object, got: Tensor, shape: Sequence[int], *, dtype: str, device: str, what: str
) -> Iterator[Violation]:
    """A violation for a wrong shape, dtype or device."""
    wanted = list(shape), torch_dtype(dtype), torch.device(device).type
    found = list(got.shape), got.dtype, got.device.type
    if found != wanted:
        expected, seen = (f"{sizes} {kind} on {where}" for sizes, kind, where in (wanted, found))
        hint = "Return the shape, dtype and device that the contract states."
        yield Violation(case, f"{what} {expected}", seen, hint)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies, to compare with `changed` later."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(case: object, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[Violation]:
    """A violation for every tensor that no longer holds the bits of its copy."""
    for name, copy in before.items():
        if not same_bits(copy, after[name].detach()):
            hint = "Work on a copy, or with operations that are not in place."
            yield Violation(case, f"{name} as it was given", f"{name} was changed in place", hint)
