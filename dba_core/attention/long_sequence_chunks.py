"""Attention of all chunks over memory and local tokens: one scaled_dot_product_attention call each, O(T) memory.

    out[t] = softmax(q_t . [k_mem_0 .. k_mem_{n-1} | k_null | k_local_start .. k_t] + bias) [v_mem | v_null | v]

No chunk copies its keys. There is one buffer of all tokens; a chunk writes its n memory tokens (and the null
token) over the tokens right before its local part, which it cannot see (n L = local_start >= n, so they fit),
and reads one contiguous view. Backward walks the chunks in reverse, puts the overwritten tokens back and
accumulates gradients in place. Beside slicing and concatenating per chunk this saves the copies, the gradients
of the copies, and their storage until backward (T/L memory tokens per chunk would make that quadratic).
Called by attention.long_sequence.
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


class KeyAxis:
    """The buffer of keys (or values) that chunks read views of.

    tokens [B, n_null+T, G, W], the null key first; memory [B, N, G, W]. `view` may be called in any order.
    """

    def __init__(self, tokens: Tensor, memory: Tensor, n_null: int) -> None:
        self._tokens, self._memory, self._n_null = tokens, memory, n_null
        self._buffer = tokens.clone(memory_format=torch.contiguous_format)
        self._overwritten = slice(0, 0)

    def view(self, chunk: Chunk) -> Tensor:
        """[B, n_mem+n_null+older+rows, G, W]: memory, null key, local tokens. Valid until the next call."""
        self._buffer[:, self._overwritten] = self._tokens[:, self._overwritten]
        first, null = chunk.local_start - chunk.n_mem, chunk.local_start
        self._buffer[:, first:null] = self._memory[:, : chunk.n_mem]
        self._buffer[:, null : null + self._n_null] = self._tokens[:, : self._n_null]
        self._overwritten = slice(first, null + self._n_null)
        return self._buffer[:, first : self._n_null + chunk.stop]


class AxisGradient:
    """Sums the gradients of the views of one KeyAxis: `tokens` and `memory` have the shapes of its inputs."""

    def __init__(self, tokens: Tensor, memory: Tensor, n_null: int) -> None:
        self.tokens = torch.zeros_like(tokens, memory_format=torch.contiguous_format)
        self.memory = torch.zeros_like(memory, memory_format=torch.contiguous_format)
        self._n_null = n_null

    def add(self, chunk: Chunk, grad: Tensor) -> None:
        """grad [B, n_mem+n_null+older+rows, G, W]."""
        sizes = [chunk.n_mem, self._n_null, chunk.older + chunk.rows]
        of_memory, of_null, of_local = grad.split(sizes, dim=1)
        self.memory[:, : chunk.n_mem] += of_memory
        self.tokens[:, : self._n_null] += of_null
        self.tokens[:, self._n_null + chunk.local_start : self._n_null + chunk.stop] += of_local


class _Step:
    """One chunk's attention call with an autograd graph of its own."""

    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, *, track: bool) -> None:
        self._inputs = tuple(t.transpose(1, 2).detach().requires_grad_(track) for t in (q, keys, values))
        self._track = track
        self.out = q  # [B, rows, H, W]

    def attend(self, bias: Tensor | None, dropout_p: float) -> None:
        """Causal when there is no bias; else the bias says what is visible."""
        q, k, v = self._inputs  # [B, H, rows, W], [B, G, S, W], [B, G, S, W]
        with (
            torch.set_grad_enabled(self._track),
            torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
        ):
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=bias,
                is_causal=bias is None,
                dropout_p=dropout_p,
                scale=1.0,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            self.out = out.transpose(1, 2)

    def gradients(self, grad: Tensor) -> tuple[Tensor, ...]:
        """grad [B, rows, H, W] of the last rows -> gradients of q, keys and values, shaped as they were given."""
        padded = F.pad(grad, (0, 0, 0, 0, self.out.shape[1] - grad.shape[1], 0))
        return tuple(g.transpose(1, 2) for g in torch.autograd.grad(self.out, self._inputs, padded))


def _as_it_is(saved: Tensor) -> Tensor:
    """As a saved-tensor hook: lets the views' memory change between forward and backward without complaint.

    KeyAxis brings it back to what it was before that chunk's backward runs.
    """
    return saved


def chunked_attention(
    heads: PackedHeads,
    *,
    null: tuple[Tensor, Tensor] | None,
    memory: tuple[Tensor, Tensor],
    plan: LongSequencePlan,
    log_mass: float,
    dropout_p: float,
) -> Tensor:
    """heads: scaled q [B,T,H,W], k and v [B,T,G,W]; null: key and value [G,W]; memory: [B,N,G,W] each
    -> [B,T,H,W].

    log_mass: what a memory logit gains beyond its key's own channels. Differentiable once.
    """
    q, k, v = heads.q, heads.k, heads.v
    n_null = 0 if null is None else 1
    if null is not None:
        q = F.pad(q, (0, 0, 0, 0, 1, 0))  # [B, 1+T, H, W]
        k, v = (
            torch.cat([one.to(x.dtype).expand(len(x), 1, -1, -1), x], 1)
            for one, x in zip(null, (k, v), strict=True)
        )
    masks = ChunkMasks(plan=plan, n_null=n_null, log_mass=log_mass, like=q)
    out: Tensor = _ChunkedAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v, *memory, plan, n_null, masks, dropout_p
    )
    return out


class _ChunkedAttention(torch.autograd.Function):
    """q [B,n_null+T,H,W], k and v [B,n_null+T,G,W], memory [B,N,G,W] -> [B,T,H,W]; row 0 of q is zero if n_null = 1."""

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
        keys, values = KeyAxis(k, k_mem, n_null), KeyAxis(v, v_mem, n_null)
        out = torch.empty_like(q[:, n_null:], memory_format=torch.contiguous_format)
        track = any(ctx.needs_input_grad)
        ctx.steps = []
        for chunk in plan.chunks:
            first = 0 if chunk.exact else n_null + chunk.start
            step = _Step(q[:, first : n_null + chunk.stop], keys.view(chunk), values.view(chunk), track=track)
            with torch.autocast(q.device.type, enabled=False):  # it would round the mask
                step.attend(None if chunk.exact else masks.of(chunk), dropout_p)
            out[:, chunk.start : chunk.stop] = step.out[:, -chunk.rows :].detach()
            if track:
                ctx.steps.append(step)
        ctx.save_for_backward(k, v, k_mem, v_mem)
        ctx.keys, ctx.values, ctx.plan, ctx.n_null = keys, values, plan, n_null
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        k, v, k_mem, v_mem = ctx.saved_tensors
        chunks: tuple[Chunk, ...] = ctx.plan.chunks
        if not ctx.steps:
            raise RuntimeError(
                "the long-sequence path frees its chunks in backward, so a second backward through the same "
                "forward (retain_graph=True) is not possible; run forward again"
            )
        grad_k, grad_v = AxisGradient(k, k_mem, ctx.n_null), AxisGradient(v, v_mem, ctx.n_null)
        grads_q: list[Tensor] = []
        for chunk in reversed(chunks):
            ctx.keys.view(chunk)
            ctx.values.view(chunk)
            of_q, of_k, of_v = ctx.steps.pop().gradients(grad_out[:, chunk.start : chunk.stop])
            grads_q.append(of_q)
            grad_k.add(chunk, of_k)
            grad_v.add(chunk, of_v)
        grad_q = torch.cat(grads_q[::-1], dim=1)
        return grad_q, grad_k.tokens, grad_v.tokens, grad_k.memory, grad_v.memory, None, None, None, None
