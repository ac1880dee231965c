"""What the queries of one chunk may see on its key axis, and the weight of its memory tokens there.

The axis is [memory | null | local]; the local part ends with the chunk's own tokens, so causality is a
bottom-right-aligned triangle (the top-left alignment of `is_causal=True` would be wrong here). A memory token
stands for L tokens: with the mass correction its logit gains log(L). Two ways to say so, chosen by device:

- "mask", on the CPU: one additive mask holds both. The triangle needs a mask there anyway (3-5% of the fused
  kernel's time), and chunks of equal geometry slice the same one.
- "columns", on CUDA: two extra key channels hold log(L), its rounded value and the rest, and queries hold 1
  there; causality is `causal_lower_right`. FlashAttention takes no mask, so nothing else stays fused there.

Called by attention.long_sequence and attention.long_sequence_chunks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dba_core.attention.long_sequence_plan import Chunk, LongSequencePlan

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias

Carrier = Literal["mask", "columns"]

#: Extra channels of the "columns" carrier.
COLUMNS = 2


def carrier_for(device: torch.device) -> Carrier:
    """How log(L) and causality travel on this device."""
    return "columns" if device.type == "cuda" else "mask"


def columns(log_mass: float, like: Tensor) -> Tensor:
    """[2]: log(L) in `like`'s dtype and what that rounding left out."""
    high = torch.tensor(log_mass, dtype=torch.float64, device="cpu").to(like.dtype)
    low = (log_mass - high.double()).to(like.dtype)
    return torch.stack([high, low]).to(like.device)


class ChunkMasks:
    """The attention bias of each chunk; masks of equal geometry are made once.

    log_mass: what a memory logit gains, 0 where nothing or where the columns carry it.
    """

    def __init__(self, *, plan: LongSequencePlan, n_null: int, log_mass: float, like: Tensor) -> None:
        self._n_blocks, self._n_null, self._log_mass = plan.n_blocks, n_null, log_mass
        self._device = like.device
        self._dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._made: dict[tuple[int, int], Tensor] = {}

    def of(self, chunk: Chunk) -> Tensor | CausalBias:
        """[rows, n_mem + n_null + older + rows]: added to the scores of a chunk that reads memory tokens."""
        if self._device.type == "cuda" and self._log_mass == 0.0:
            # Imported where it is used: it pulls in dynamo, half of every command's start-up.
            from torch.nn.attention.bias import causal_lower_right

            bias: CausalBias = causal_lower_right(
                chunk.rows, chunk.n_mem + self._n_null + chunk.older + chunk.rows
            )
            return bias
        key = (chunk.older, chunk.rows)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key][:, self._n_blocks - chunk.n_mem :]

    def _make(self, older: int, rows: int) -> Tensor:
        """[rows, n_blocks + n_null + older + rows]: the mask of a chunk that reads every block."""
        before = self._n_blocks + self._n_null + older
        mask = torch.zeros(rows, before + rows, device=self._device, dtype=self._dtype)
        mask[:, : self._n_blocks] = self._log_mass
        mask[:, before:] = torch.full_like(mask[:, before:], -math.inf).triu_(1)
        return mask
