"""Bytes of a KV cache by arithmetic alone, equal to what `LayerCache` allocates. No torch.

tensor:  G * code_bytes(D) + scale_bytes(G*D, qblock)            per token
layer:   batch * (capacity * bytes_per_token + residual_bytes)   = LayerCache.nbytes
model:   n_layers * layer                                        = KVCache.nbytes
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.contracts import AttentionShape

#: The context at which summaries quote cache sizes ("128k").
LONG_CONTEXT = 131072

#: Bytes of one value in the residual window and in the standard cache (fp16).
_FP16_BYTES = 2

_LEAST_ROLLBACK = 64


def default_rollback(policy: KVCachePolicy) -> int:
    """How many tokens `truncate` can take back exactly when nothing else is asked for."""
    return max(policy.residual, _LEAST_ROLLBACK)


def tensor_bytes_per_token(n_heads: int, head_dim: int, tensor_format: TensorFormat) -> int:
    """Codes and scales of one token in one cached tensor."""
    facts = tensor_format.facts
    return n_heads * facts.code_bytes(head_dim) + facts.scale_bytes(n_heads * head_dim, tensor_format.qblock)


def tensor_residual_bytes(
    n_heads: int, head_dim: int, tensor_format: TensorFormat, *, residual: int, rollback: int
) -> int:
    """The fp16 ring of one sequence in one cached tensor: residual + rollback tokens, block formats only."""
    if not residual or not tensor_format.facts.quantized:
        return 0
    return _FP16_BYTES * n_heads * head_dim * (residual + rollback)


def cached_tensors(shape: AttentionShape, policy: KVCachePolicy) -> tuple[tuple[int, int, TensorFormat], ...]:
    """Heads, width of one head and format of k_sem, k_geo and v."""
    sem, geo, v = shape.cached_heads
    return (
        (sem, shape.sem_head_dim, policy.k_sem),
        (geo, shape.geo_head_dim, policy.k_geo),
        (v, shape.v_head_dim, policy.v),
    )


def bytes_per_token(shape: AttentionShape, policy: KVCachePolicy) -> int:
    """Bytes that one more token takes in one layer of one sequence."""
    return sum(
        tensor_bytes_per_token(heads, width, fmt) for heads, width, fmt in cached_tensors(shape, policy)
    )


def residual_bytes(shape: AttentionShape, policy: KVCachePolicy, rollback: int | None = None) -> int:
    """Bytes of the residual window of one layer of one sequence, whatever its length.

    rollback: None is `default_rollback(policy)`, as in `LayerCache`.
    """
    back = default_rollback(policy) if rollback is None else rollback
    tensors = cached_tensors(shape, policy)
    return sum(tensor_residual_bytes(*each, residual=policy.residual, rollback=back) for each in tensors)


def cache_bytes(
    shape: AttentionShape,
    n_layers: int,
    policy: KVCachePolicy,
    context: int,
    *,
    rollback: int | None = None,
) -> int:
    """Bytes of the cache of one sequence of `context` tokens in all layers, residual window included."""
    return n_layers * (context * bytes_per_token(shape, policy) + residual_bytes(shape, policy, rollback))


def standard_bytes_per_token(d_model: int) -> int:
    """fp16 keys and values of standard attention of the same model width, one layer of one sequence."""
    return 2 * d_model * _FP16_BYTES


@attrs.frozen(kw_only=True)
class MemoryRow:
    """The KV cache of one sequence of `context` tokens in all layers, and fp16 standard attention's."""

    context: int
    kv_bytes: int
    standard_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller than the standard cache; infinite for a cache without bytes."""
        return self.standard_bytes / self.kv_bytes if self.kv_bytes else float("inf")


def memory_table(
    shape: AttentionShape,
    n_layers: int,
    policy: KVCachePolicy,
    contexts: Sequence[int] = (LONG_CONTEXT,),
    *,
    rollback: int | None = None,
) -> list[MemoryRow]:
    """One row per context length, residual window included. `contexts` are tokens; d_model is the shape's."""
    standard = standard_bytes_per_token(shape.d_model)
    return [
        MemoryRow(
            context=context,
            kv_bytes=cache_bytes(shape, n_layers, policy, context, rollback=rollback),
            standard_bytes=n_layers * context * standard,
        )
        for context in contexts
    ]
