"""The KV cache of a run in bytes: per token, at the model's own context, at 128k, against fp16.

Called by the summary, the memory plot and `dba run --dry-run`. No torch.
"""

from __future__ import annotations

import attrs

from dba_core.cache.bytes import (
    LONG_CONTEXT,
    bytes_per_token,
    cache_bytes,
    memory_table,
    residual_bytes,
    standard_bytes_per_token,
    tensor_bytes_per_token,
)
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.contracts import AttentionShape

_PREFERRED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32"
#: The window of the default policy takes no more than this part of the fp16 cache at the context.
_WINDOW_PART = 1 / 8


def policy_of(config: RunConfig) -> KVCachePolicy:
    """The policy of a configuration: its own, or `default_policy` of its model."""
    return default_policy(config.model) if config.kv_policy is None else config.kv_policy


def default_policy(model: ModelConfig) -> KVCachePolicy:
    """4, 8 and 4 bits for each tensor that they make smaller than fp16, and a window of 32 tokens where it
    takes little of the context; fp16 where nothing is smaller than it at the model's context.
    """
    shape = model.attention.resolved(d_model=model.d_model).shape
    sem, geo, v = shape.cached_heads
    preferred, wide = KVCachePolicy.parse(_PREFERRED), KVCachePolicy.uniform("fp16")
    blocks = KVCachePolicy(
        k_sem=_smaller(sem, shape.sem_head_dim, preferred.k_sem),
        k_geo=_smaller(geo, shape.geo_head_dim, preferred.k_geo),
        v=_smaller(v, shape.v_head_dim, preferred.v),
    )
    windowed = attrs.evolve(blocks, residual=preferred.residual)
    fp16 = cache_bytes(shape, 1, wide, model.context)
    fitting = [windowed, blocks] if residual_bytes(shape, windowed) <= _WINDOW_PART * fp16 else [blocks]
    smaller = [policy for policy in fitting if cache_bytes(shape, 1, policy, model.context) < fp16]
    return smaller[0] if smaller else wide


def _smaller(heads: int, width: int, blocks: TensorFormat) -> TensorFormat:
    """The block format, unless one token of the tensor takes no less in it than in fp16."""
    fp16 = TensorFormat("fp16")
    if width and tensor_bytes_per_token(heads, width, blocks) >= tensor_bytes_per_token(heads, width, fp16):
        return fp16
    return blocks


@attrs.frozen(kw_only=True)
class KvMemory:
    """Bytes of one sequence's cache. `residual_bytes` (the fp16 window) does not grow with the length, and is
    part of every figure of a whole cache.

    context: the model's own; bytes_context, fp16_bytes_context, standard_bytes_context: the cache of so many
    tokens under the policy, in fp16, and standard attention's in fp16. ratio_context: how many times smaller
    than the last. long_context (131072, "128k"), bytes_long, standard_bytes_long, ratio: the same at a length
    that is there for scale.
    """

    bytes_per_token_per_layer: int
    bytes_per_token: int
    residual_bytes: int
    context: int
    bytes_context: int
    fp16_bytes_context: int
    standard_bytes_context: int
    ratio_context: float
    long_context: int
    bytes_long: int
    fp16_bytes_per_token: int
    standard_bytes_per_token: int
    standard_bytes_long: int
    ratio: float


def kv_memory(shape: AttentionShape, n_layers: int, policy: KVCachePolicy, *, context: int) -> KvMemory:
    """The cache of all layers under a policy; context: the model's own."""
    own, long = memory_table(shape, n_layers, policy, (context, LONG_CONTEXT))
    layer, wide = bytes_per_token(shape, policy), KVCachePolicy.uniform("fp16")
    return KvMemory(
        bytes_per_token_per_layer=layer,
        bytes_per_token=n_layers * layer,
        residual_bytes=n_layers * residual_bytes(shape, policy),
        context=context,
        bytes_context=own.kv_bytes,
        fp16_bytes_context=cache_bytes(shape, n_layers, wide, context),
        standard_bytes_context=own.standard_bytes,
        ratio_context=own.ratio,
        long_context=LONG_CONTEXT,
        bytes_long=long.kv_bytes,
        fp16_bytes_per_token=n_layers * bytes_per_token(shape, wide),
        standard_bytes_per_token=n_layers * standard_bytes_per_token(shape.d_model),
        standard_bytes_long=long.standard_bytes,
        ratio=long.ratio,
    )


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"


def times_smaller(own: int, other: int) -> str:
    """(10, 30) -> "3.0x smaller than"; (30, 20) -> "1.5x larger than"."""
    if own == other:
        return "as large as"
    ratio = max(own, other) / min(own, other)
    digits = 1 if ratio >= 1.1 else 2 if ratio >= 1.01 else 3
    return f"{ratio:.{digits}f}x {'smaller' if own < other else 'larger'} than"
