"""The KV cache of one attention layer: k_sem, k_geo and v of the tokens seen so far, for every batch row.

A query at position t reads the keys of positions (t - resid, t] as the fp16 residual window holds them and
older ones as stored, however the tokens arrived. `append` is all or nothing over the three tensors;
`truncate` followed by `append` gives the same bits as never having gone there, or is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from operator import le

import torch
from torch import Tensor

from dba_core.cache.append_checks import (
    DTYPES,
    check_counts,
    check_room,
    check_tensor,
    check_values,
    whole_number,
    whole_numbers,
)
from dba_core.cache.bytes import default_rollback, tensor_bytes_per_token, tensor_residual_bytes
from dba_core.cache.places import Place, Scatter, Span
from dba_core.cache.store import RowLengths, TensorStore
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.contracts import CachedTensor, TokenWriter
from dba_core.errors import CacheError
from dba_core.free_memory import many, require_memory
from dba_core.registry import Registry

#: Rows whose lengths a representation lists.
_ROWS_SHOWN = 8


class LayerCache:
    """Storage for `capacity` tokens of `batch` sequences, allocated once.

    k_sem, k_geo, v: (n_heads, head_dim) of each tensor; a head_dim of 0 is an absent path. layer: the number
    that errors name. rollback: how many tokens `truncate` can take back with the residual window still exact
    (None: max(resid, 64)); more costs fp16 bytes for each. All tensors are on `device`. registry: has the
    formats of the policy.
    """

    def __init__(
        self,
        *,
        k_sem: tuple[int, int],
        k_geo: tuple[int, int],
        v: tuple[int, int],
        batch: int,
        capacity: int,
        policy: KVCachePolicy,
        registry: Registry,
        device: torch.device | str = "cpu",
        layer: int = 0,
        rollback: int | None = None,
    ) -> None:
        if not isinstance(policy, KVCachePolicy):
            raise CacheError(
                f"policy of the cache is {policy!r}; give a KVCachePolicy (new_cache takes its text as well)"
            )
        self.policy = policy
        self.layer = layer
        #: int32 [1] on the device, not 0 after a bad value; made by a writer that does not wait for it
        self.bad_values: Tensor | None = None
        self.batch = _whole("batch", batch, least=1)
        self.capacity = _whole("capacity", capacity, least=1)
        self.rollback = _whole(
            "rollback", default_rollback(policy) if rollback is None else rollback, least=0
        )
        named = {"k_sem": (*k_sem, policy.k_sem), "k_geo": (*k_geo, policy.k_geo), "v": (*v, policy.v)}
        require_memory(
            self.batch * sum(self._row_bytes(*each) for each in named.values()),
            device=str(device),
            what=f"layer {layer} of a KV cache for {many(self.batch)} sequence(s) of "
            f"{many(self.capacity)} tokens",
            smaller="the number of tokens or of sequences",
        )
        #: how many of the newest tokens are read in fp16 where the format is a block format
        self.residual_len = policy.residual
        #: slots of the residual rings: position p is in slot p % ring_size; 0 without a residual window
        self.ring_size = policy.residual + self.rollback if policy.residual else 0
        with torch.inference_mode(False):  # a cache made under inference mode can be written outside of it
            where = _real_device(device)
            self._rows = RowLengths(
                batch=self.batch, residual_len=self.residual_len, ring_size=self.ring_size, device=where
            )
            self.k_sem, self.k_geo, self.v = (
                TensorStore(
                    CachedTensor(
                        n_heads=_whole(f"heads of {name}", heads, least=1),
                        head_dim=_whole(f"width of {name}", width, least=0),
                        format=fmt.format,
                        qblock=fmt.qblock,
                    ),
                    label=f"layer {layer}: {name}",
                    lengths=self._rows,
                    capacity=self.capacity,
                    device=where,
                    registry=registry,
                )
                for name, (heads, width, fmt) in named.items()
            )
        #: `lengths` as an int32 tensor [B] on the cache's device, always the same tensor; read only
        self.lengths_device = self._rows.device
        #: heads, width and format of k_sem, k_geo and v
        self.specs = self.k_sem.spec, self.k_geo.spec, self.v.spec
        #: heads, width and device that an append must have, by tensor
        self._forms = [(store.n_heads, store.head_dim, store.codes.device) for store in self._stores]
        self._has_ring = any(store.recent_ring is not None for store in self._stores)

    def _row_bytes(self, n_heads: int, head_dim: int, fmt: TensorFormat) -> int:
        """What one sequence takes of one tensor."""
        ring = tensor_residual_bytes(
            n_heads, head_dim, fmt, residual=self.policy.residual, rollback=self.rollback
        )
        return self.capacity * tensor_bytes_per_token(n_heads, head_dim, fmt) + ring

    def __repr__(self) -> str:
        return f"LayerCache(layer={self.layer}, {self.summary(lengths=self.lengths)})"

    def summary(self, *, lengths: tuple[int, ...], nbytes: int | None = None) -> str:
        """Sizes, contents, formats, bytes and device, in one line. nbytes: None is this layer's."""
        held = f"length={lengths[0]}" if len(set(lengths)) == 1 else f"lengths={_shown(lengths)}"
        size = self.nbytes if nbytes is None else nbytes
        return (
            f"batch={self.batch}, capacity={self.capacity}, {held}, policy={self.policy.short!r}, "
            f"nbytes={size}, device={str(self.lengths_device.device)!r}"
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens held by each batch row."""
        return self._rows.host

    @property
    def length(self) -> int:
        """Tokens held by the longest row."""
        return self._rows.longest

    @property
    def capturing(self) -> bool:
        """Whether what is done now is recorded in a CUDA graph; `lengths` then stay as they are."""
        return self._rows.capturing

    @property
    def nbytes(self) -> int:
        """Bytes allocated: batch * (capacity * bytes_per_token + residual_bytes) of `cache.bytes`.

        The lengths, four bytes per row, are not counted.
        """
        return sum(store.nbytes for store in self._stores)

    def append(
        self,
        k_sem: Tensor,
        k_geo: Tensor,
        v: Tensor,
        *,
        counts: Sequence[int] | None = None,
        writer: TokenWriter | None = None,
    ) -> None:
        """Add tokens: k_sem [B,G,T,Ds], k_geo [B,G,T,Dg] (rotated), v [B,G,T,Dv].

        Row b gets its first counts[b] tokens (a list, integer array or tensor [B]; None: all T); what comes
        after them is not looked at. writer: stores the tokens where every row takes all of them, with the
        same result. Raises CacheError for wrong shapes, dtypes, devices or counts, too little room, and
        values that are not finite or out of the format's range; after any exception the cache is as it was,
        or, where one struck a writer whose ring has no room to spare, refuses to go on.
        """
        inputs = (k_sem, k_geo, v)
        if k_sem.dim() != 4:
            raise CacheError(f"{self.k_sem.label}: append got shape {list(k_sem.shape)}; give [B, G, T, Ds]")
        q_len = k_sem.shape[2]
        for number, (x, (heads, width, device)) in enumerate(zip(inputs, self._forms, strict=True)):
            form = (self.batch, heads, q_len, width)
            if x.shape != form or x.dtype not in DTYPES or x.device != device:
                check_tensor(self._stores[number], x, batch=self.batch, q_len=q_len)
        if counts is None:
            steps = (q_len,) * self.batch
        else:
            steps = check_counts(counts, layer=self.layer, batch=self.batch, q_len=q_len)
        if self.length + q_len > self.capacity:
            check_room(self.lengths, steps, layer=self.layer, capacity=self.capacity)
        if not any(steps):
            return
        self._check_window()
        if writer is None or min(steps) < q_len or not self._written_by(writer, inputs, steps):
            self._store(inputs, steps)

    @torch.no_grad()
    def _store(self, inputs: tuple[Tensor, Tensor, Tensor], steps: tuple[int, ...]) -> None:
        """Add the first steps[b] tokens to row b, or raise CacheError for a bad value; all or nothing."""
        place = self._place(steps)
        taken = [place.take(x) for x in inputs]
        check_values(self._stores, taken, place)
        encoded = [store.encode(x) for store, x in zip(self._stores, taken, strict=True)]
        with ExitStack() as undo:
            undo.callback(self._rows.sync)
            for store, x, ready in zip(self._stores, inputs, encoded, strict=True):
                store.write(x, ready, place, undo)
            self._rows.advance(steps)
            undo.pop_all()

    def sync(self) -> None:
        """Take the lengths from the device, after replays of a CUDA graph that appends. Waits for the device.

        Raises CacheError where more was appended than the cache holds, and where a value was not finite or
        out of its format's range.
        """
        grown = tuple(self.lengths_device.tolist())
        if max(grown) > self.capacity:
            self._rows.sync()
            raise CacheError(
                f"layer {self.layer}: replays grew the rows to {list(grown)} tokens, more than the capacity "
                f"of {self.capacity}; the lengths are {list(self.lengths)} again. Replay less often, or make "
                "the cache with a larger capacity"
            )
        self._rows.follow_device()
        self.check_values()

    def check_values(self) -> None:
        """Raise CacheError where a writer that does not wait for its device has met a bad value."""
        if self.bad_values is None or not int(self.bad_values):
            return
        raise CacheError(
            f"layer {self.layer}: a key or value that was appended is not finite, or exceeds what its format "
            "holds; what was decoded since is worth nothing. Look for its cause upstream of the cache, or "
            "choose a format with a wider range (bf16, fp32); reset() empties the cache"
        )

    def truncate(self, length: int | Sequence[int]) -> None:
        """Keep the first `length` tokens (one number for all rows, or one per row).

        What follows is bit for bit as if the rest had never been appended. Raises CacheError, changing
        nothing, for a length that a row does not have, and where the residual window before it is no longer
        held.
        """
        self._rows.shorten(self.check_truncate(length))

    def check_truncate(self, length: int | Sequence[int]) -> tuple[int, ...]:
        """The length of every row after `truncate(length)`; raises what that would and changes nothing."""
        one = whole_number(length)
        many_rows = whole_numbers(length)
        if many_rows is None and type(one) is not int:
            raise CacheError(
                f"layer {self.layer}: truncate got {length!r}; give a whole number, or a list with one a row"
            )
        wanted = (one,) * self.batch if many_rows is None else many_rows
        if len(wanted) != self.batch:
            raise CacheError(
                f"layer {self.layer}: truncate got {len(wanted)} lengths for {self.batch} batch rows; "
                "give one number, or one per row"
            )
        for row, keep in enumerate(wanted):
            self._check_row(row, keep)
        return wanted

    def reset(self) -> None:
        """Forget all tokens; the storage stays."""
        self.truncate(0)
        if self.bad_values is not None:
            self.bad_values.zero_()

    @property
    def _stores(self) -> tuple[TensorStore, TensorStore, TensorStore]:
        return self.k_sem, self.k_geo, self.v

    def _written_by(
        self, writer: TokenWriter, inputs: tuple[Tensor, Tensor, Tensor], steps: tuple[int, ...]
    ) -> bool:
        """Whether `writer` took the tokens; where it met a bad value, `append` goes on to say which."""
        done = False
        try:
            written = writer.write(self, *inputs)
            if written:
                self._rows.advance(steps)
            done = True
        finally:
            if not done:
                self._rows.overwrite(steps)
                self._rows.sync()
        return written

    def _check_window(self) -> None:
        """The ring holds every row's residual window, as it does unless a writer was interrupted."""
        if not self._has_ring:
            return
        held_from, residual = self._rows.held_from, self.residual_len
        needed = [max(0, length - residual) for length in self._rows.host]
        if all(map(le, held_from, needed)):
            return
        raise CacheError(
            f"layer {self.layer}: an append was interrupted. The rows' residual windows begin at positions "
            f"{needed}, and the ring holds positions from {list(held_from)} on; reset() and prefill again"
        )

    def _place(self, steps: tuple[int, ...]) -> Place:
        if self._rows.equal and min(steps) == max(steps):
            return Span(0, self.length, steps[0])
        return Scatter.ragged(self.lengths, steps, self.lengths_device.device)

    def _check_row(self, row: int, keep: int) -> None:
        """Whether one row can be cut to `keep` tokens exactly."""
        length, held_from = self.lengths[row], self._rows.held_from[row]
        where = f"layer {self.layer}, batch row {row}: truncate to {keep!r}"
        if type(keep) is not int or not 0 <= keep <= length:
            raise CacheError(f"{where} of {length} tokens; allowed: whole numbers from 0 to {length}")
        window = max(0, keep - self.residual_len)
        if keep and self._has_ring and window < held_from:
            raise CacheError(
                f"{where} of {length} tokens would need the fp16 residual window from position {window} on, "
                f"but the ring holds positions {held_from} to {length - 1} only. Exact are lengths from "
                f"{held_from + self.residual_len} to {length}, and 0; `rollback=` of new_cache "
                f"(now {self.rollback}) extends that"
            )


def _shown(lengths: tuple[int, ...]) -> str:
    """The rows' lengths, of many rows the first ones."""
    first = ", ".join(map(str, lengths[:_ROWS_SHOWN]))
    return f"[{first}]" if len(lengths) <= _ROWS_SHOWN else f"[{first}, ... {max(lengths)} at most]"


def _real_device(device: torch.device | str) -> torch.device:
    where = torch.device(device)
    if where.type == "meta":
        raise CacheError(
            "device of the cache is 'meta', where tensors hold no values; give the weights a real device "
            "first (`to_empty(device=...)` and `load_state_dict`). How many bytes a cache takes: cache.bytes"
        )
    return where


def _whole(what: str, value: int, *, least: int) -> int:
    number = whole_number(value)
    if type(number) is not int or number < least:
        raise CacheError(f"{what} of the cache is {value!r}; allowed: whole numbers from {least} on")
    return number
