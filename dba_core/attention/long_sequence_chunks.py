"""Attention of every chunk over memory and local tokens: one scaled_dot_product_attention call per chunk.

    out[t] = softmax(q_t . [k_mem_0 .. k_mem_n-1 | k_null | k_local_start .. k_t] + bias) [v_mem | v_null | v]

No chunk copies its keys. There is one buffer of all tokens; a chunk writes its n memory tokens (and the null
token) over the tokens right before its local part, which it cannot see (n <= n L = local_start, so they fit),
and reads one contiguous view. Backward walks the chunks in reverse, puts the overwritten tokens back and adds
up gradients in place. Concatenating per chunk instead costs the copies, the gradients of the copies and their
storage until backward, which grows with T^2/L. Called by attention.long_sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dba_core.attention.long_sequence_masks import ChunkMasks
from dba_core.attention.long_sequence_plan import Chunk, LongSequencePlan
from dba_core.attention.projections import PackedHeads


def chunked_attention(
    heads: PackedHeads,
    *,
    null: tuple[Tensor, Tensor] | None,
    memory: tuple[Tensor, Tensor],
    plan: LongSequencePlan,
    log_mass: float,
    dropout_p: float,
) -> Tensor:
    """q [B,T,H,W] scaled, k and v [B,T,G,W]; null: key and value [G,W]; memory: keys and values [B,N,G,W].

    -> [B,T,H,W], differentiable once. log_mass: what a memory logit gains beyond its key's own channels.
    """
    q, k, v = heads.q, heads.k, heads.v
    n_null = 0 if null is None else 1
    if null is not None:
        q = F.pad(q, (0, 0, 0, 0, 1, 0))  # [B, 1+T, H, W]
        k, v = _prepend(null[0], k), _prepend(null[1], v)
    masks = ChunkMasks(plan=plan, n_null=n_null, log_mass=log_mass, like=q)
    out: Tensor = _ChunkedAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v, *memory, plan, n_null, masks, dropout_p
    )
    return out


def _prepend(null: Tensor, tokens: Tensor) -> Tensor:
    """null [G,W] before tokens [B,T,G,W] -> [B,1+T,G,W]."""
    return torch.cat([null.to(tokens.dtype).expand(len(tokens), 1, -1, -1), tokens], dim=1)


class KeyAxis:
    """The buffer of keys (or values) that chunks read views of.

    tokens [B, n_null+T, G, W], the null key first; memory [B, N, G, W].
    """

    def __init__(self, tokens: Tensor, memory: Tensor, n_null: int) -> None:
        self._tokens, self._memory = tokens.transpose(1, 2), memory.transpose(1, 2)
        self._buffer = self._tokens.clone(memory_format=torch.contiguous_format)  # [B, G, n_null+T, W]
        self._n_null = n_null
        self._overwritten = slice(0, 0)

    def view(self, chunk: Chunk) -> Tensor:
        """[B, G, n_mem+n_null+older+rows, W]: memory, null key, local tokens. Valid until the next call."""
        self._buffer[:, :, self._overwritten] = self._tokens[:, :, self._overwritten]
        first, null, local = (
            chunk.local_start - chunk.n_mem,
            chunk.local_start,
            chunk.local_start + self._n_null,
        )
        self._buffer[:, :, first:null] = self._memory[:, :, : chunk.n_mem]
        self._buffer[:, :, null:local] = self._tokens[:, :, : self._n_null]
        self._overwritten = slice(first, local)
        return self._buffer[:, :, first : self._n_null + chunk.stop]


class AxisGradient:
    """Adds up the gradients of one KeyAxis's views: `tokens` and `memory`, shaped as its inputs."""

    def __init__(self, tokens: Tensor, memory: Tensor, n_null: int) -> None:
        self.tokens = torch.zeros_like(tokens, memory_format=torch.contiguous_format)
        self.memory = torch.zeros_like(memory, memory_format=torch.contiguous_format)
        self._n_null = n_null

    def add(self, chunk: Chunk, grad: Tensor) -> None:
        """grad [B, G, n_mem+n_null+older+rows, W] of the chunk's view."""
        sizes = [chunk.n_mem, self._n_null, chunk.older + chunk.rows]
        of_memory, of_null, of_local = torch.split(grad.transpose(1, 2), sizes, dim=1)
        self.memory[:, : chunk.n_mem] += of_memory
        self.tokens[:, : self._n_null] += of_null
        self.tokens[:, self._n_null + chunk.local_start : self._n_null + chunk.stop] += of_local


class _Step:
    """One chunk's attention call, with an autograd graph of its own where gradients are wanted."""

    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, *, track: bool) -> None:
        self._inputs = tuple(x.detach().requires_grad_(track) for x in (q, keys, values))
        self._track = track
        self.out = q  # [B, H, rows, W]

    def attend(self, bias: Tensor | None, dropout_p: float) -> Tensor:
        """-> [B, H, rows, W], detached. Causal when there is no bias; else the bias says what is visible."""
        q, k, v = self._inputs
        hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        with torch.set_grad_enabled(self._track), hooks:
            self.out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=bias,
                is_causal=bias is None,
                dropout_p=dropout_p,
                scale=1.0,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return self.out.detach()

    def gradients(self, grad: Tensor) -> tuple[Tensor, ...]:
        """grad [B, H, n, W] of the last n rows -> gradients of q, keys and values, shaped as they were."""
        missing = self.out.shape[2] - grad.shape[2]
        return torch.autograd.grad(
            self.out, self._inputs, F.pad(grad, (0, 0, missing, 0)) if missing else grad
        )


def _as_it_is(saved: Tensor) -> Tensor:
    """As a saved-tensor hook: the memory of a saved view may change between forward and backward.

    KeyAxis brings it back to what it was before the backward of that chunk runs.
    """
    return saved


class _ChunkedAttention(torch.autograd.Function):
    """q [B,n_null+T,H,W] (row 0 zero if n_null), k and v [B,n_null+T,G,W], memory [B,N,G,W] -> [B,T,H,W]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_mem: Tensor,
        v_mem: Tensor,
        plan: LongSequencePlan,
        n_null: int,
        masks: ChunkMasks,
        dropout_p: float,
    ) -> Tensor:
        ctx.keys, ctx.values = KeyAxis(k, k_mem, n_null), KeyAxis(v, v_mem, n_null)
        ctx.plan, ctx.n_null, ctx.steps = plan, n_null, []
        ctx.save_for_backward(k, v, k_mem, v_mem)
        track = any(ctx.needs_input_grad)
        out = torch.empty_like(q[:, n_null:], memory_format=torch.contiguous_format)
        for chunk in plan.chunks:
            first = (
                0 if chunk.exact else n_null + chunk.start
            )  # the exact chunk keeps the zero row: it is square
            queries = q[:, first : n_null + chunk.stop].transpose(1, 2)  # [B, H, rows, W]
            step = _Step(queries, ctx.keys.view(chunk), ctx.values.view(chunk), track=track)
            with torch.autocast(q.device.type, enabled=False):  # it would round the mask
                rows = step.attend(None if chunk.exact else masks.of(chunk), dropout_p)
            out[:, chunk.start : chunk.stop] = rows[:, :, -chunk.rows :].transpose(1, 2)
            if track:
                ctx.steps.append(step)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        k, v, k_mem, v_mem = ctx.saved_tensors
        if not ctx.steps:
            raise RuntimeError(
                "the long-sequence path frees its chunks during backward: a second backward through the same "
                "forward (retain_graph=True) is not possible; run forward again"
            )
        grad_k, grad_v = AxisGradient(k, k_mem, ctx.n_null), AxisGradient(v, v_mem, ctx.n_null)
        of_queries: list[Tensor] = []  # last chunk first
        for chunk in reversed(ctx.plan.chunks):
            ctx.keys.view(chunk)
            ctx.values.view(chunk)
            rows = grad_out[:, chunk.start : chunk.stop].transpose(1, 2)  # [B, H, rows, W]
            of_q, of_keys, of_values = ctx.steps.pop().gradients(rows)
            of_queries.append(of_q.transpose(1, 2))
            grad_k.add(chunk, of_keys)
            grad_v.add(chunk, of_values)
        ctx.keys = ctx.values = None
        grad_q = torch.cat(of_queries[::-1], dim=1)
        return grad_q, grad_k.tokens, grad_v.tokens, grad_k.memory, grad_v.memory, None, None, None, None
