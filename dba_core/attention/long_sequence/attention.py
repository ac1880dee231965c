"""The long-sequence path: full resolution nearby, one memory token per block of the far past.

    score(memory block n) = q_sem . summarizer(k_sem of block n) + log(L)      (semantic only)
    score(token j)        = q_sem . k_sem_j + q_geo . k_geo_j                  one softmax over both
    out[t] = softmax(q_t . [k_mem_0 .. k_mem_n-1 | k_null | k_local_start .. k_t] + bias) [v_mem | v_null | v]

O(T (W + T/L)) work instead of O(T^2), O(T) memory; one scaled_dot_product_attention call per chunk of queries
(which keys each reads: `plan`). Where every token lies within the window it is exact attention.

No chunk copies its keys. There is one buffer of all tokens; a chunk writes its n memory tokens (and the null
token) over the tokens right before its local part, which it cannot see (n <= n L = local_start, so they fit),
and reads one contiguous view. Backward walks the chunks in reverse, puts the overwritten tokens back and adds
up gradients in place. Concatenating per chunk instead costs the copies, the gradients of the copies and their
storage until backward, which grows with T^2/L.

The local part ends with the chunk's own tokens, so causality is a bottom-right-aligned triangle (the top-left
alignment of `is_causal=True` would be wrong here). A memory token stands for L tokens: with the mass
correction its logit gains log(L). Two ways to say both, chosen by device:

- "mask", on the CPU: one additive mask. The triangle needs a mask there anyway (3-5% of the fused kernel's
  time), and chunks of equal geometry slice the same one.
- "columns", on CUDA: two extra key channels hold log(L), its rounded value and the rest, and queries hold 1
  there; causality is `causal_lower_right`. FlashAttention takes no mask, so nothing else stays fused there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dba_core.attention.fused import fused_attention
from dba_core.attention.inputs import compute_dtype, without_autocast
from dba_core.attention.long_sequence.plan import Chunk, LongSequencePlan
from dba_core.attention.projections import Heads, Packing, null_first
from dba_core.contracts import NullKV, Summarizer

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias

Carrier = Literal["mask", "columns"]


def long_sequence_attention(
    heads: Heads,
    *,
    plan: LongSequencePlan,
    summarizer: Summarizer,
    null: NullKV | None,
    dropout_p: float = 0.0,
    carrier: Carrier | None = None,
) -> Tensor:
    """Causal attention of T tokens over memory tokens and a window, [B,H,T,Dv]; differentiable once.

    heads: scaled, rotated, gated, G heads of each key and value; query head h reads KV head h // (H/G). Ds 0
    is an absent path: memory tokens then score the same for every query. plan: of T tokens. Every query sees
    the null key exactly once. The summarizer is called with the blocks that some query reads, or not at all
    where none does; what it returns is taken as it is. carrier: None is the device's own.
    """
    q_sem, q_geo, k_sem, _, v = heads
    by_columns = (carrier or ("columns" if v.device.type == "cuda" else "mask")) == "columns"
    log_mass = math.log(plan.mem_block) if plan.mass_correction else 0.0
    packing = Packing.of(
        q_sem,
        q_geo,
        v=v,
        dtype=compute_dtype(v),
        log_mass=log_mass if by_columns and plan.mass_correction and not plan.exact else None,
        align=8 if by_columns else 1,
    )
    packed = packing.heads(*heads)
    packed_null = None if null is None else packing.null(null)
    if plan.exact:
        exact = fused_attention(packed, null=packed_null, dropout_p=dropout_p)  # [B, T, H, W]
        return exact.transpose(1, 2)[..., : v.shape[-1]]
    q, k, v_packed = (each.transpose(1, 2) for each in packed)  # [B, H or G, T, W]
    n_null = 0 if packed_null is None else 1
    if packed_null is not None:
        q = F.pad(q, (0, 0, 1, 0))  # [B, H, 1+T, W]
        k, v_packed = null_first(packed_null[0], k, dim=2), null_first(packed_null[1], v_packed, dim=2)
    k_mem, v_mem = packing.memory(*_summaries(summarizer, k_sem, v, plan))
    masks = ChunkMasks(plan=plan, n_null=n_null, log_mass=0.0 if by_columns else log_mass, like=q)
    out: Tensor = _ChunkedAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v_packed, k_mem, v_mem, plan, n_null, masks, dropout_p
    )
    return out[..., : v.shape[-1]]


def _summaries(
    summarizer: Summarizer, k_sem: Tensor, v: Tensor, plan: LongSequencePlan
) -> tuple[Tensor, Tensor]:
    """The memory tokens of the blocks that some query reads: [B,G,N,Ds], [B,G,N,Dv]."""
    n_blocks, mem_block = plan.n_blocks, plan.mem_block
    sizes = [n_blocks * mem_block, plan.length - n_blocks * mem_block]
    read = [torch.split(x, sizes, dim=2)[0] for x in (k_sem, v)]  # cheaper than slices in backward
    blocks = [torch.unflatten(x, 2, (n_blocks, mem_block)) for x in read]
    return summarizer(*blocks)  # [B, G, N, L, D] -> [B, G, N, D]


class KeyAxis:
    """All keys (or values) in one buffer, where each chunk finds its own side by side.

    tokens [B, G, n_null+T, W], the null key first, becomes the buffer; memory [B, G, N, W].
    """

    def __init__(self, tokens: Tensor, memory: Tensor, n_null: int) -> None:
        self.buffer, self.memory, self.n_null = tokens.detach(), memory.detach(), n_null
        self._null = self.buffer[:, :, :n_null].clone()
        self._overwritten = self.buffer[:, :, :0]  # the slots of the last view's memory and null key
        self._original = self._overwritten

    def view(self, chunk: Chunk) -> Tensor:
        """[B, G, n_mem+n_null+older+rows, W]: memory, null key, local tokens. Valid until the next call."""
        self._overwritten.copy_(self._original)
        first = chunk.local_start - chunk.n_mem
        view = self.buffer[:, :, first : self.n_null + chunk.stop]
        self._overwritten = view[:, :, : chunk.n_mem + self.n_null]
        self._original = self._overwritten.clone()
        view[:, :, : chunk.n_mem] = self.memory[:, :, : chunk.n_mem]
        if self.n_null:
            view[:, :, chunk.n_mem : chunk.n_mem + self.n_null] = self._null
        return view


class AxisGradient:
    """Adds up the gradients of one KeyAxis's views, given from the last chunk to the exact one.

    After that `tokens` [B, G, n_null+T, W] and `memory` [B, G, N, W] are the gradients of its inputs.
    """

    def __init__(self, axis: KeyAxis) -> None:
        batch, heads, slots, width = axis.buffer.shape
        n_null = axis.n_null
        empty = axis.buffer.new_empty(batch, slots, heads, width)
        self.tokens = empty.transpose(1, 2)  # the layout SDPA returns
        self.tokens[:, :, :n_null] = 0.0
        self.memory = torch.zeros_like(axis.memory)
        self._n_null, self._filled_from = n_null, slots

    def add(self, chunk: Chunk, grad: Tensor) -> None:
        """grad [B, G, n_mem+n_null+older+rows, W] of the chunk's view."""
        sizes = [chunk.n_mem, self._n_null, chunk.older + chunk.rows]
        of_memory, of_null, of_local = torch.split(grad, sizes, dim=2)
        self.memory[:, :, : chunk.n_mem] += of_memory
        if self._n_null:
            self.tokens[:, :, : self._n_null] += of_null
        first, filled = self._n_null + chunk.local_start, self._filled_from
        self.tokens[:, :, first:filled] = of_local[:, :, : filled - first]
        self.tokens[:, :, filled : self._n_null + chunk.stop] += of_local[:, :, filled - first :]
        self._filled_from = first


class _Step:
    """One chunk's attention call, with an autograd graph of its own where gradients are wanted."""

    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, *, track: bool) -> None:
        self._inputs = tuple(x.detach().requires_grad_(track) for x in (q, keys, values))
        self.out = q  # [B, H, rows, W]

    def attend(self, bias: Tensor | None, dropout_p: float) -> Tensor:
        """-> [B, H, rows, W], detached. Causal when there is no bias; else the bias says what is visible."""
        q, k, v = self._inputs
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
    """q [B,H,n_null+T,W], k and v [B,G,n_null+T,W], k_mem and v_mem [B,G,N,W] -> [B,H,T,W].

    With n_null = 1, token 0 of k and v is the null key and value, and token 0 of q is zero. k and v are
    overwritten: give tensors that nobody else reads. Differentiable once.
    """

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
        ctx.plan, ctx.steps = plan, []
        track = any(ctx.needs_input_grad)
        batch, heads, slots, width = q.shape
        out = q.new_empty(batch, slots - n_null, heads, width).transpose(1, 2)  # [B, H, T, W]
        no_autocast = without_autocast(q.device)  # it would round the masks
        hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        with torch.set_grad_enabled(track), no_autocast, hooks:
            for chunk in plan.chunks:
                # With the zero row in front the exact chunk is square.
                first = 0 if chunk.exact else n_null + chunk.start
                rows = q[:, :, first : n_null + chunk.stop]
                step = _Step(rows, ctx.keys.view(chunk), ctx.values.view(chunk), track=track)
                made = step.attend(None if chunk.exact else masks.of(chunk), dropout_p)
                out[:, :, chunk.start : chunk.stop] = made[:, :, -chunk.rows :]
                if track:
                    ctx.steps.append(step)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.steps:
            raise RuntimeError(
                "the long-sequence path frees its chunks during backward: a second backward through the same "
                "forward (retain_graph=True) is not possible; run forward again"
            )
        grad_k, grad_v = AxisGradient(ctx.keys), AxisGradient(ctx.values)
        of_queries: list[Tensor] = []  # last chunk first
        for chunk in reversed(ctx.plan.chunks):
            ctx.keys.view(chunk)
            ctx.values.view(chunk)
            of_q, of_keys, of_values = ctx.steps.pop().gradients(grad_out[:, :, chunk.start : chunk.stop])
            of_queries.append(of_q)
            grad_k.add(chunk, of_keys)
            grad_v.add(chunk, of_values)
        ctx.keys = ctx.values = None
        grad_q = torch.cat(of_queries[::-1], dim=2)
        return grad_q, grad_k.tokens, grad_v.tokens, grad_k.memory, grad_v.memory, None, None, None, None


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
