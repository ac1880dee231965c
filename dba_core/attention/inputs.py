"""What `DecoupledAttention.forward` may be given, and how: under autocast, compiled or not.

A mask says which keys may be seen: bool, [B or 1, H or 1, T or 1, T or 1], or [T,T] or [H,T,T] without the
axes in front. A padding mask [B,T] is none of these: as a mask of keys it is [B,1,1,T]. Where B = T, or B = H
with three axes, a mask could be meant either way; it is refused rather than read one way.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from dba_core.cache.layer import LayerCache
from dba_core.contracts import AttentionShape
from dba_core.errors import CacheError, UnsupportedError

F = TypeVar("F", bound=Callable[..., object])
_REASON = (
    "a pass with a KV cache is not compiled: it changes the cache in place and calls a decode backend. "
    "Compile with fullgraph=False, or without a cache"
)


def autocast_enabled(device: torch.device) -> bool:
    """Whether operations on this device are cast by `torch.autocast` here; never on `meta`."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within: operations on this device keep the dtypes that they are given."""
    if not autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def compute_dtype(like: Tensor) -> torch.dtype:
    """What attention computes in: the autocast dtype where autocast is on, else that of `like`."""
    enabled = autocast_enabled(like.device)
    return torch.get_autocast_dtype(like.device.type) if enabled else like.dtype


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a Linear, the first floating-point parameter or buffer of what wraps or replaces one: its
    dtype and device are the module's.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next(each for each in tensors if each.is_floating_point())


def uncompiled(function: F) -> F:
    """The same function, of a pass with a KV cache; compiled code calls it between its graphs.

    It appends to the cache, whose lengths are kept in Python, and calls a decode backend with addresses of
    memory; neither is an operation of a graph, and the backends are compiled already. `fullgraph=True`, which
    allows no such call, raises torch's `Unsupported` with this reason.
    """

    @functools.wraps(function)
    def outside(*args: object, **kwargs: object) -> object:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        disable = cast("Callable[..., F]", torch.compiler.disable)
        return disable(function, reason=_REASON)(*args, **kwargs)

    # The marks that `torch.compiler.disable` sets. Calling it here would import dynamo, half of the start-up
    # of every command, for programs that compile nothing.
    vars(outside).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=_REASON)
    return cast("F", outside)


def check_inputs(
    x: Tensor,
    shape: AttentionShape,
    *,
    weight: Tensor,
    cache: LayerCache | None,
    mask: Tensor | None,
    counts: Sequence[int] | None,
) -> None:
    """Raise ValueError (types, shapes, dtypes, devices), CacheError (no cache for this x) or UnsupportedError
    (a mask with a cache). weight: one of the layer's, for its dtype and device.
    """
    _check_x(x, shape, weight)
    if cache is None:
        if counts is not None:
            raise ValueError(
                f"counts={counts!r} without a cache; counts say how many tokens a cache row takes"
            )
        if mask is not None:
            _check_mask(mask, (len(x), shape.n_heads, x.shape[1], x.shape[1]), x.device)
        return
    if not isinstance(cache, LayerCache):
        raise CacheError(
            f"cache is a {type(cache).__name__}; give one layer's cache, from this layer's new_cache or out "
            "of `layers` of the model's cache"
        )
    if mask is not None:
        raise UnsupportedError(
            "a mask together with a cache is not supported: a query sees all cached tokens. Leave the mask "
            "out, and give `counts` where rows have different numbers of tokens"
        )
    if len(x) != cache.batch:
        raise CacheError(
            f"layer {cache.layer}: x has batch {len(x)}, the cache {cache.batch}; give equal ones"
        )
    if cache.lengths_device.device != x.device:
        raise CacheError(
            f"layer {cache.layer}: x is on {x.device}, the cache on {cache.lengths_device.device}; make the "
            "cache with new_cache after the layer was moved"
        )


def _check_x(x: Tensor, shape: AttentionShape, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"x is a {type(x).__name__}; give a tensor [batch, tokens, {shape.d_model}]")
    _check_dense("x", x)
    if x.dim() != 3 or x.shape[-1] != shape.d_model:
        raise ValueError(f"x has shape {list(x.shape)}; give [batch, tokens, {shape.d_model}]")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}, the layer's weights on {weight.device}; move one of them")
    same = x.dtype == weight.dtype or (x.is_floating_point() and autocast_enabled(x.device))
    if not same:
        raise ValueError(
            f"x has dtype {x.dtype}, the layer's weights {weight.dtype}; convert one of them with "
            "`.to(dtype)`, or run under torch.autocast"
        )


def _check_dense(name: str, tensor: Tensor) -> None:
    """One number stored for each place; a nested tensor has no shape to look at."""
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor; give a padded one, `torch.nested.to_padded_tensor`")
    if tensor.is_quantized:
        raise ValueError(f"{name} is quantized ({tensor.dtype}); give `{name}.dequantize()`")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has layout {tensor.layout}; give a dense tensor, `{name}.to_dense()`")


def _check_mask(mask: Tensor, full: tuple[int, int, int, int], device: torch.device) -> None:
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask is a {type(mask).__name__}; give a tensor of torch.bool")
    _check_dense("mask", mask)
    got = list(mask.shape)
    _refuse_two_meanings(got, full)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; give torch.bool, True where a key may be seen")
    fits = 2 <= len(got) <= 4 and all(
        size in (1, whole) for size, whole in zip(got[::-1], full[::-1], strict=False)
    )
    if not fits or (len(got) == 2 and got != list(full[2:])):
        raise ValueError(
            f"mask has shape {got}; give [T,T] {list(full[2:])}, or one of four axes that broadcasts to "
            f"{list(full)} [B,H,T,T]; padding [B,T] goes in as mask[:, None, None, :]"
        )
    if mask.device != device:
        raise ValueError(f"mask is on {mask.device}, x on {device}; move one of them")


def _refuse_two_meanings(got: list[int], full: tuple[int, int, int, int]) -> None:
    """Raise ValueError for padding, and where the first axis could be the batch as well as what it broadcasts
    to.
    """
    batch, heads, q_len, _ = full
    if got == [batch, q_len] != [1, 1]:
        square = batch == q_len
        raise ValueError(
            f"mask of shape {got} {'could be' if square else 'is'} a padding mask [B,T]"
            f"{' or a mask [T,T]' if square else ''}; give padding as mask.bool()[:, None, None, :] "
            f"[B,1,1,T], True at real tokens{', and [T,T] as mask[None, None]' if square else ''}"
        )
    if len(got) == 3 and got[0] == batch != 1:
        raise ValueError(
            f"mask of shape {got} has one axis of {batch} in front of [T,T], where the batch is {batch} and "
            f"the heads are {heads}; give [B,T,T] as mask[:, None] and [H,T,T] as mask[None]"
        )
