"""What the summarizers have in common: the block mean, and the dtypes that they are made for."""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.contracts import Reason, SummarizerRequest, Support

DTYPES = ("float32", "bfloat16")


def block_mean(blocks: Tensor) -> Tensor:
    """[B, G, N, L, D] -> [B, G, N, D], summed in float32 (float64 for float64) and rounded once.

    A sum and one division of the small result: `Tensor.mean` divides the whole expanded gradient in backward.
    """
    dtype = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    return (blocks.sum(dim=3, dtype=dtype) / blocks.shape[3]).to(blocks.dtype)


def known_dtype(request: SummarizerRequest) -> Support:
    """Supported in float32 and bfloat16."""
    if request.dtype in DTYPES:
        return Support.yes()
    return Support.no(
        Reason(
            subject="dtype",
            got=request.dtype,
            supported=" or ".join(DTYPES),
            action="Set dtype to one of these.",
        )
    )
