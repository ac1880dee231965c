"""Weights in blocks of 32 values, int8 and int4: how they are rounded, where the codes lie, the product.

    int8    w = scale code,            code -127 .. 127        8.5 bits per value
    int4    w = scale code + least,    code 0 .. 15            5 bits per value

scale and least are float16, so that GGUF's Q8_0, Q4_0 and Q4_1 keep their own values. A weight is rounded to
the codes that miss it least; of int4 the span of a block is searched for, and scale and least are fitted to
the codes by least squares.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_plugins.weights.packed import VECTOR, Packed

#: Values of a block, and of a step of the kernel: two blocks.
BLOCK, STEP = 32, 64
#: Blocks that are rounded at once: they stay in the processor's cache.
_AT_ONCE = 1 << 13
#: Spans of a block that are tried, as parts of the whole one, when its values are on no grid of 16 steps.
_SPANS = (0.94, 0.87)


class BlockWeight(Packed):
    """A weight [N,K] in blocks."""

    def __init__(
        self, codes: Tensor, scales: Tensor, least: Tensor | None, *, shape: tuple[int, int]
    ) -> None:
        """codes, scales, least: as `pack` lays them out, rows and blocks filled up with zeros."""
        super().__init__(codes, scales, least, shape=shape, bits=8 if least is None else 4)
        self.codes, self.scales, self.least = codes, scales, least

    @classmethod
    def pack(cls, weight: Tensor, *, bits: int) -> BlockWeight:
        """weight [N,K], float; bits 8 or 4."""
        n, k = weight.shape
        n_steps = -(-k // STEP)
        padded = F.pad(weight.detach().float(), (0, n_steps * STEP - k, 0, -n % VECTOR))
        blocks = padded.view(-1, BLOCK)
        rounded = _round8 if bits == 8 else _round4
        # a block is a column, so that what is asked of every block is asked of a vector of them
        made = [rounded(part.T.contiguous()) for part in torch.split(blocks, _AT_ONCE)]
        code = torch.cat([each.T for each, _, _ in made])
        scale, least = (torch.cat([each[i] for each in made]) for i in (1, 2))
        rows = len(padded)
        lanes = code.view(rows, n_steps, 2, 4, VECTOR).transpose(2, 3).flatten(3)  # [N', steps, 4, 16]
        if bits == 8:
            codes = lanes.to(torch.int8).flatten(1)
        else:
            places = 16 ** torch.arange(4, device=lanes.device)[:, None]
            codes = (lanes.to(torch.int32) * places).sum(2).to(torch.int16).flatten(1)
        side = [
            F.pad(each.view(rows, -1), (0, -2 * n_steps % VECTOR)).contiguous() for each in (scale, least)
        ]
        return cls(codes.contiguous(), side[0], side[1] if bits == 4 else None, shape=(n, k))

    def rows(self, index: Tensor) -> Tensor:
        """The values of some rows: index [...] -> [...,K] float32."""
        flat = index.reshape(-1)
        n_steps = -(-self.shape[1] // STEP)
        lanes = self.codes[flat].view(len(flat), n_steps, -1, 2 * VECTOR)
        if self.bits == 4:
            shifts = 4 * torch.arange(4, dtype=torch.int32, device=lanes.device)[:, None]
            lanes = (lanes.to(torch.int32) >> shifts) & 15  # [n, steps, 4, 16]
        blocks = torch.unflatten(lanes, -1, (2, VECTOR)).transpose(2, 3).float().flatten(3).flatten(1, 2)
        n_blocks = 2 * n_steps
        blocks *= self.scales[flat, :n_blocks, None].float()
        if self.least is not None:
            blocks += self.least[flat, :n_blocks, None].float()
        return blocks.flatten(1)[:, : self.shape[1]].reshape(*index.shape, self.shape[1])


def _round8(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[32,n] -> codes [32,n], scale [n] float16 that is not too small, and no least."""
    largest = blocks.abs().amax(0)
    scale = (largest / 127.0).half()
    scale = torch.where(scale.float() * 127.5 < largest, torch.nextafter(scale, scale + 1), scale)
    code = (blocks / scale.float().clamp_min(2.0**-24)).round_()
    return code, scale, torch.zeros_like(scale)


def _round4(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[32,n] -> codes [32,n], scale and least [n] float16, the best of those that were tried."""
    low, high = torch.aminmax(blocks, dim=0)
    best = _coded(blocks, (high - low) / 15.0, low)
    if bool((best[3] == 0).float().mean() > 0.5):  # the values are on such a grid, with fewer steps elsewhere
        tried = [(low, (high - low) / steps) for steps in range(14, 0, -1)]
    else:
        middle, half = (low + high) / 2.0, (high - low) / 2.0
        tried = [(middle - half * part, half * part / 7.5) for part in _SPANS]
    for least, scale in tried:
        best = _better(best, _coded(blocks, scale, least))
    best = _better(best, _coded(blocks, *_least_squares(blocks, best[0])))
    return best[0], best[1], best[2]


_Coded = tuple[Tensor, Tensor, Tensor, Tensor]


def _coded(blocks: Tensor, scale: Tensor, least: Tensor) -> _Coded:
    """Codes, scale and least as float16, and the squared error [n]."""
    scale, least = scale.half(), least.half()
    step, offset = scale.float(), least.float()
    code = (blocks - offset).div_(step.clamp_min(2.0**-24)).round_().clamp_(0, 15)
    error = torch.addcmul(offset, code, step).sub_(blocks).square_().sum(0)
    return code, scale, least, error


def _better(a: _Coded, b: _Coded) -> _Coded:
    """Block by block, a where b is not better."""
    wins = b[3] < a[3]
    code, scale, least, error = (torch.where(wins, theirs, ours) for ours, theirs in zip(a, b, strict=True))
    return code, scale, least, error


def _least_squares(blocks: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """scale and least [n] with which these codes miss the values least."""
    code_mean, mean = code.mean(0), blocks.mean(0)
    spread = code - code_mean
    scale = (spread * blocks).sum(0) / spread.square_().sum(0).clamp_min_(1e-9)
    return scale, mean - scale * code_mean
