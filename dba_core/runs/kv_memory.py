"""The KV cache of a run in bytes: per token, at 128k, against fp16 standard attention of the same model.

Called by the summary, the memory plot and `dba run --dry-run`. No torch.
"""

from __future__ import annotations

import attrs

from dba_core.cache.bytes import (
    LONG_CONTEXT,
    bytes_per_token,
    memory_table,
    residual_bytes,
    standard_bytes_per_token,
)
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape

#: The cache without quantization, for comparison.
FP16_POLICY = KVCachePolicy()


@attrs.frozen(kw_only=True)
class KvMemory:
    """Bytes of one sequence's cache. `residual_bytes` (the fp16 window) does not grow with the length.

    long_context: the length that `bytes_long` and `standard_bytes_long` are for (131072, "128k"). ratio: how
    many times smaller than standard attention's fp16 cache at that length.
    """

    bytes_per_token_per_layer: int
    bytes_per_token: int
    residual_bytes: int
    long_context: int
    bytes_long: int
    fp16_bytes_per_token: int
    standard_bytes_per_token: int
    standard_bytes_long: int
    ratio: float


def kv_memory(shape: AttentionShape, n_layers: int, policy: KVCachePolicy) -> KvMemory:
    """The cache of all layers under a policy."""
    (long,) = memory_table(shape, n_layers, policy, (LONG_CONTEXT,))
    layer = bytes_per_token(shape, policy)
    return KvMemory(
        bytes_per_token_per_layer=layer,
        bytes_per_token=n_layers * layer,
        residual_bytes=n_layers * residual_bytes(shape, policy),
        long_context=LONG_CONTEXT,
        bytes_long=long.kv_bytes,
        fp16_bytes_per_token=n_layers * bytes_per_token(shape, FP16_POLICY),
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
