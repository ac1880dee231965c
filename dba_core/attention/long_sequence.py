"""The long-sequence training path: full resolution nearby, one memory token per block of the far past.

    score(memory block n) = q_sem . summarizer(k_sem of block n) + log(L)      (semantic only)
    score(token j)        = q_sem . k_sem_j + q_geo . k_geo_j                  one softmax over both

O(T (W + T/L)) work instead of O(T^2), O(T) memory. Which keys a query reads: long_sequence_plan. How the
chunks run: long_sequence_chunks. Where every token lies within the window it is exact attention. Called by
attention.module in training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.fused import fused_attention
from dba_core.attention.inputs import autocast_enabled
from dba_core.attention.long_sequence_chunks import chunked_attention
from dba_core.attention.long_sequence_masks import Carrier, carrier_for
from dba_core.attention.long_sequence_packing import Packing
from dba_core.attention.long_sequence_plan import LongSequencePlan
from dba_core.attention.packing import PackedHeads, PackedNull
from dba_core.contracts import NullKV, Summarizer


def long_sequence_attention(
    q_sem: Tensor,
    q_geo: Tensor,
    k_sem: Tensor,
    k_geo: Tensor,
    v: Tensor,
    *,
    summarizer: Summarizer,
    null: NullKV | None,
    mem_block: int,
    local_window: int,
    q_chunk: int,
    mass_correction: bool,
    dropout_p: float = 0.0,
    carrier: Carrier | None = None,
) -> Tensor:
    """Causal attention of T tokens over memory tokens and a window, [B,H,T,Dv]; differentiable once.

    q_sem [B,H,T,Ds], q_geo [B,H,T,Dg]: scaled, rotated, gated. k_sem [B,G,T,Ds], k_geo [B,G,T,Dg],
    v [B,G,T,Dv]; query head h reads KV head h // (H/G). Ds = 0 is an absent path: memory tokens then score
    the same for every query. mem_block, local_window, q_chunk: tokens. mass_correction: a memory token's
    logit gains log(mem_block). Every query sees the null key exactly once. The summarizer is called with the
    blocks that some query reads, or not at all where none does; what it returns is taken as it is. carrier:
    see long_sequence_masks, None is the device's own. Raises ConfigError for sizes out of range.
    """
    plan = LongSequencePlan(
        length=q_geo.shape[2], mem_block=mem_block, local_window=local_window, q_chunk=q_chunk
    )
    by_columns = (carrier_for(q_geo.device) if carrier is None else carrier) == "columns"
    log_mass = math.log(mem_block) if mass_correction else 0.0
    packing = Packing(
        sem=q_sem.shape[-1],
        geo=q_geo.shape[-1],
        v=v.shape[-1],
        log_mass=log_mass if by_columns and mass_correction and not plan.exact else None,
        align=8 if by_columns else 1,
        dtype=_compute_dtype(v),
    )
    q = packing.queries(q_sem, q_geo)
    k, v_packed = packing.tokens(k_sem, k_geo, v)
    packed_null = None if null is None else PackedNull(*packing.null(null))
    if plan.exact:
        heads = PackedHeads(q=q.transpose(1, 2), k=k.transpose(1, 2), v=v_packed.transpose(1, 2))
        out = fused_attention(
            heads, null=None if packed_null is None else PackedNull(*packed_null), dropout_p=dropout_p
        ).transpose(1, 2)
    else:
        if packed_null is not None:
            q = F.pad(q, (0, 0, 1, 0))  # [B, H, 1+T, W]
            k, v_packed = _prepend(packed_null[0], k), _prepend(packed_null[1], v_packed)
        out = chunked_attention(
            q,
            k,
            v_packed,
            *packing.memory(*_summaries(summarizer, k_sem, v, plan)),
            plan=plan,
            n_null=0 if null is None else 1,
            log_mass=0.0 if by_columns else log_mass,
            dropout_p=dropout_p,
        )
    return out[..., : v.shape[-1]]


def _prepend(null: Tensor, tokens: Tensor) -> Tensor:
    """null [G,W] before tokens [B,G,T,W] -> [B,G,1+T,W]."""
    return torch.cat([null[:, None].expand(len(tokens), -1, -1, -1), tokens], dim=2)


def _summaries(
    summarizer: Summarizer, k_sem: Tensor, v: Tensor, plan: LongSequencePlan
) -> tuple[Tensor, Tensor]:
    """The memory tokens of the blocks that some query reads: [B,G,N,Ds], [B,G,N,Dv]."""
    n_blocks, mem_block = plan.n_blocks, plan.mem_block
    sizes = [n_blocks * mem_block, plan.length - n_blocks * mem_block]
    read = [torch.split(x, sizes, dim=2)[0] for x in (k_sem, v)]  # cheaper than slices in backward
    blocks = [torch.unflatten(x, 2, (n_blocks, mem_block)) for x in read]
    return summarizer(*blocks)  # [B, G, N, L, D] -> [B, G, N, D]


def _compute_dtype(like: Tensor) -> torch.dtype:
    """What attention computes in: the autocast dtype where autocast is on, else the values' own."""
    enabled = autocast_enabled(like.device)
    return torch.get_autocast_dtype(like.device.type) if enabled else like.dtype
