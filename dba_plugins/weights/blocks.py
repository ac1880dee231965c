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
#: The smallest float16 above zero.
_LEAST_SCALE = 2.0**-24


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
    code = (blocks / scale.float().clamp_min(_LEAST_SCALE)).round_()
    return code, scale, torch.zeros_like(scale)


def _round4(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[32,n] -> codes [32,n], scale and least [n] float16, the best of those that were tried."""
    low, high = torch.aminmax(blocks, dim=0)
    best = _coded(blocks, (high - low) / 15.0, low)
    few = blocks[:, :64]
    if bool(_exact(_on_grid(few, low[:64], high[:64]), few).float().mean() > 0.5):
        best = _on_grid(blocks, low, high)
    else:
        middle, half = (low + high) / 2.0, (high - low) / 2.0
        for part in _SPANS:
            best = _better(best, _coded(blocks, half * part / 7.5, middle - half * part))
        best = _better(best, _coded(blocks, *_least_squares(blocks, best[0])))
    return best[0], best[1], best[2]


#: Codes [32,n], scale and least [n] as float16, and the squared error [n].
_Coded = tuple[Tensor, Tensor, Tensor, Tensor]


def _on_grid(blocks: Tensor, low: Tensor, high: Tensor) -> _Coded:
    """Blocks that were made as code * scale + least: what they were made of, where the extremes tell it. The
    largest value may be code 0, with a scale below zero.
    """
    best = _coded(blocks, (high - low) / 15.0, low)
    for steps in range(15, 0, -1):
        for first, last in ((low, high), (high, low)):
            (left,) = torch.nonzero(~_exact(best, blocks), as_tuple=True)
            if not len(left):
                return best
            part = (last[left] - first[left]) / steps
            mine = tuple(each[..., left] for each in best)
            better = _better(mine, _coded(blocks[:, left], part, first[left]))  # type: ignore[arg-type]
            for whole, own in zip(best, better, strict=True):
                whole[..., left] = own
    return best


def _exact(made: _Coded, blocks: Tensor) -> Tensor:
    """[n] bool: nothing but float32's rounding was lost."""
    return made[3] <= 1e-12 * blocks.square().sum(0)


def _coded(blocks: Tensor, scale: Tensor, least: Tensor) -> _Coded:
    rounded, least = scale.half(), least.half()
    scale = torch.where((rounded == 0.0) & (scale != 0.0), _LEAST_SCALE, rounded)
    step, offset = scale.float(), least.float()
    code = (blocks - offset).div_(torch.where(step == 0.0, 1.0, step)).round_().clamp_(0, 15)
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
