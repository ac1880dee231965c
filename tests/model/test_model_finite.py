"""A weight that is not finite is found, and a finite one never refused."""

from __future__ import annotations

import pytest
import torch

from dba_core.errors import CheckpointError
from dba_core.model.weights import check_finite

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_its_name_its_file_and_its_place_are_said(value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    tensor[2, 1] = value
    tensor[2, 4] = -value
    with pytest.raises(CheckpointError, match=r"f\.pt: w holds 2 of 15 values .* at \[2, 1\]"):
        check_finite(tensor, name="w", where="f.pt")


def test_large_finite_numbers_and_other_types_pass() -> None:
    check_finite(
        torch.full((64, 64), torch.finfo(torch.float64).max, dtype=torch.float64), name="w", where=""
    )
    check_finite(torch.full((4096,), torch.finfo(torch.float32).max), name="w", where="")
    check_finite(torch.tensor([1, 2]), name="w", where="")
    check_finite(torch.zeros(0, 4), name="w", where="")
    with pytest.raises(CheckpointError, match=r"at \[\] \(nan\)"):
        check_finite(torch.tensor(float("nan")), name="w", where="")
