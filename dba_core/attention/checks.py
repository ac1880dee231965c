"""What `DecoupledAttention.forward` may be given. Errors name what was got and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dba_core.cache.layer import LayerCache
from dba_core.contracts import AttentionShape
from dba_core.errors import CacheError, UnsupportedError


def check_inputs(
    x: Tensor,
    shape: AttentionShape,
    *,
    cache: LayerCache | None,
    mask: Tensor | None,
    counts: Sequence[int] | None,
) -> None:
    """Raise ValueError (shapes), CacheError (another batch) or UnsupportedError (a mask with a cache)."""
    if x.dim() != 3 or x.shape[-1] != shape.d_model:
        raise ValueError(f"x has shape {list(x.shape)}; give [batch, tokens, {shape.d_model}]")
    if cache is None:
        if counts is not None:
            raise ValueError(
                f"counts={list(counts)} without a cache; counts say how many tokens a cache row takes"
            )
        if mask is not None:
            _check_mask(mask, (len(x), shape.n_heads, x.shape[1], x.shape[1]))
        return
    if mask is not None:
        raise UnsupportedError(
            "a mask together with a cache is not supported: a query sees all cached tokens. Leave the mask "
            "out, and give `counts` where rows have different numbers of tokens"
        )
    if len(x) != cache.batch:
        raise CacheError(
            f"layer {cache.layer}: x has batch {len(x)}, the cache {cache.batch}; give equal ones"
        )


def _check_mask(mask: Tensor, full: tuple[int, int, int, int]) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; give torch.bool, True where a key may be seen")
    fits = mask.dim() <= 4 and all(
        size in (1, whole) for size, whole in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {list(mask.shape)}; give one that broadcasts to {list(full)} [B,H,T,T]"
        )
