"""What an append must satisfy before anything is written. Every error names the layer and the numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dba_core.cache.places import Place
from dba_core.cache.store import TensorStore
from dba_core.errors import CacheError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def whole_number(value: Any) -> Any:
    """The int of whatever Python takes as an index (NumPy's and torch's integers); anything else, and truth
    values, as they are, for an error to name.
    """
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def whole_numbers(value: Any) -> tuple[Any, ...] | None:
    """`whole_number` of each item of a sequence, or of a tensor or NumPy array of one axis; None for else."""
    if isinstance(value, (Tensor, np.ndarray)):
        items = value.tolist() if value.ndim == 1 else None
    else:
        items = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None
    return None if items is None else tuple(map(whole_number, items))


def check_tensor(store: TensorStore, x: Tensor, *, batch: int, q_len: int) -> None:
    """Shape [batch, G, q_len, D], a floating dtype, the cache's device."""
    expected = (batch, store.n_heads, q_len, store.head_dim)
    if x.shape != expected:
        raise CacheError(
            f"{store.label}: append got shape {list(x.shape)}; this cache takes {list(expected)} "
            "(batch, KV heads, tokens as in k_sem, head width)"
        )
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise CacheError(f"{store.label}: append got dtype {x.dtype}; allowed: {names}")
    if x.device != store.codes.device:
        raise CacheError(
            f"{store.label}: append got a tensor on {x.device}, the cache is on {store.codes.device}; "
            "move one of them"
        )


def check_counts(counts: Sequence[int], *, layer: int, batch: int, q_len: int) -> tuple[int, ...]:
    """One whole number 0..q_len per batch row."""
    taken = whole_numbers(counts)
    if taken is None:
        raise CacheError(
            f"layer {layer}: append got counts={counts!r}; give a list of whole numbers, one for each of "
            f"{batch} batch rows"
        )
    if len(taken) != batch:
        raise CacheError(
            f"layer {layer}: append got {len(taken)} counts for {batch} batch rows; give one per row"
        )
    for row, count in enumerate(taken):
        if type(count) is not int or not 0 <= count <= q_len:
            raise CacheError(
                f"layer {layer}, batch row {row}: count {count!r} of an append of {q_len} tokens; "
                f"allowed: whole numbers from 0 to {q_len}"
            )
    return taken


def check_room(lengths: Sequence[int], counts: Sequence[int], *, layer: int, capacity: int) -> None:
    """No row grows past the capacity."""
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length + count > capacity:
            raise CacheError(
                f"layer {layer}, batch row {row}: append of {count} tokens to a length of {length} exceeds "
                f"the capacity of {capacity} by {length + count - capacity}; nothing was written. Make the "
                "cache with a larger capacity, append less, or truncate() first"
            )


def check_values(stores: Sequence[TensorStore], taken: Sequence[Tensor], place: Place) -> None:
    """Every value finite and within its store's range; one read from the device for all tensors together, and
    where a bad one sits is looked for only when there is one.
    """
    filled = [(store, x) for store, x in zip(stores, taken, strict=True) if x.numel()]
    if not filled:
        return
    extremes = torch.stack([extreme for _, x in filled for extreme in torch.aminmax(x)]).tolist()
    for (store, x), low, high in zip(filled, extremes[::2], extremes[1::2], strict=True):
        if not (low >= -store.max_input and high <= store.max_input):  # a NaN makes both extremes NaN
            raise _bad_value(store, x, place)


def _bad_value(store: TensorStore, x: Tensor, place: Place) -> CacheError:
    """The error for the first value (by row, then token) of x [N,G,n,D] that is not within the range."""
    by_token = x.transpose(1, 2)  # [N, n, G, D]
    outside = ~(by_token.double().abs() <= store.max_input)
    entry, step, head, channel = outside.nonzero()[0].tolist()
    row, token, position = place.origin(entry, step)
    value = float(by_token[entry, step, head, channel])
    holder = store.format if store.recent_ring is None else f"{store.format} with an fp16 residual window"
    return CacheError(
        f"{store.label}, batch row {row}, position {position} (token {token} of the append, head {head}, "
        f"channel {channel}): value {value:g}; {holder} takes finite values up to {store.max_input:g} in "
        "size; nothing was written. Look for its cause upstream of the cache, or choose a format with a "
        "wider range (bf16, fp32)"
    )
