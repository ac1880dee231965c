"""Every weight read from a file is looked at before it is used: a NaN anywhere makes every result a NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from dba_core.errors import CheckpointError


def check_finite(tensor: Tensor, *, name: str, where: str) -> None:
    """Raise CheckpointError for a floating tensor (any shape) with a NaN or an infinity.

    The message says how many there are and where the first one stands; `where` is the file. One pass over the
    tensor, no copy of it where all is well.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # The sum is not finite if an element is not; a finite tensor whose sum overflows is looked at one by one.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if count == 0:
        return
    place = tuple(int(i) for i in bad.nonzero()[0])
    raise CheckpointError(
        f"{where}: {name} holds {count} of {tensor.numel()} values that are not finite, the first at "
        f"{list(place)} ({float(tensor[place])}). The file is damaged, or the "
        "training that wrote it diverged; get it again, or take an earlier checkpoint"
    )
