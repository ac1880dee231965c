"""The long-sequence path written again from its definition: one query at a time, explicit keys, float64.

For a query t of the chunk that starts at t0 = t // C * C: local_start = floor(max(0, t0 - W) / L) * L; it
reads the null key, one memory key per block before local_start, and the tokens local_start .. t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dba_core.attention.long_sequence.plan import LongSequencePlan
from dba_core.contracts import NullKV

Summarize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Setup(NamedTuple):
    """Block, window and chunk in tokens; KV heads; the null token; the mass correction."""

    block: int
    window: int
    chunk: int
    kv_heads: int = 2
    null: bool = False
    mass: bool = True

    def plan(self, length: int) -> LongSequencePlan:
        """Of a sequence of `length` tokens."""
        return LongSequencePlan(
            length=length,
            mem_block=self.block,
            local_window=self.window,
            q_chunk=self.chunk,
            mass_correction=self.mass,
        )


class Inputs(NamedTuple):
    """Scaled queries [B,H,T,*], keys and values [B,G,T,*]."""

    q_sem: Tensor
    q_geo: Tensor
    k_sem: Tensor
    k_geo: Tensor
    v: Tensor


def draw(
    length: int,
    *,
    kv_heads: int = 2,
    n_heads: int = 4,
    batch: int = 2,
    widths: tuple[int, int, int] = (3, 4, 5),
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Random inputs of widths (Ds, Dg, Dv)."""
    sem, geo, v = widths
    sizes = ((n_heads, sem), (n_heads, geo), (kv_heads, sem), (kv_heads, geo), (kv_heads, v))
    return Inputs(*(torch.randn(batch, heads, length, d, dtype=dtype) for heads, d in sizes))


def draw_null(inputs: Inputs) -> NullKV:
    """A random null token that fits the inputs."""
    k_sem, k_geo, v = (
        torch.randn(x.shape[1], x.shape[3], dtype=x.dtype) for x in (inputs.k_sem, inputs.k_geo, inputs.v)
    )
    return NullKV(k_sem=k_sem, k_geo=k_geo, v=v)


def mean_of_blocks(k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k_sem.mean(3), v.mean(3)


def long_sequence_oracle(
    inputs: Inputs, setup: Setup, *, null: NullKV | None = None, summarize: Summarize = mean_of_blocks
) -> Tensor:
    """[B,H,T,Dv] float64, differentiable."""
    q_sem, q_geo, k_sem, k_geo, v = (x.double() for x in inputs)
    share = q_geo.shape[1] // k_geo.shape[1]
    length = q_geo.shape[2]
    mass = math.log(setup.block) if setup.mass else 0.0
    whole = length // setup.block
    blocks = [
        x[:, :, : whole * setup.block].reshape(*x.shape[:2], whole, setup.block, x.shape[3])
        for x in (k_sem, v)
    ]
    # one key/value head per query head from here on
    k_mem, v_mem, k_sem, k_geo, v = (
        x.repeat_interleave(share, dim=1) for x in (*summarize(*blocks), k_sem, k_geo, v)
    )
    if null is not None:
        null_sem, null_geo, null_v = (
            x.double().repeat_interleave(share, dim=0)[None, :, None]
            for x in (null.k_sem, null.k_geo, null.v)
        )

    rows = []
    for t in range(length):
        t0 = t // setup.chunk * setup.chunk
        n_mem = max(0, t0 - setup.window) // setup.block
        near = slice(n_mem * setup.block, t + 1)
        sem, geo = q_sem[:, :, t, None], q_geo[:, :, t, None]  # [B, H, 1, D]
        scores = [(sem * k_sem[:, :, near]).sum(-1) + (geo * k_geo[:, :, near]).sum(-1)]
        values = [v[:, :, near]]
        if n_mem:
            scores.append((sem * k_mem[:, :, :n_mem]).sum(-1) + mass)
            values.append(v_mem[:, :, :n_mem])
        if null is not None:
            scores.append((sem * null_sem).sum(-1) + (geo * null_geo).sum(-1))
            values.append(null_v.expand(len(v), -1, -1, -1))
        weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1)  # [B, H, keys]
        rows.append((weights.unsqueeze(-1) * torch.cat(values, dim=2)).sum(2))
    return torch.stack(rows, dim=2)
