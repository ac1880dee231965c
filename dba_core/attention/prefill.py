"""Prefill: T tokens enter a cache and attend to it. The same numbers whatever the chunking.

The query at position t reads positions (t - R, t] as the residual window of R tokens holds them and older
ones as stored; with R = 0 it reads even itself as stored. In keys, with n the row's length before the chunk:

    past, stored      p < n and p <= t - R        blocks of keys, each dequantized once for all queries
    past, recent      p < n and p >  t - R        at most R - 1 keys, read before the chunk is appended
    chunk, stored     p >= n and p <= t - R
    chunk, recent     p >= n and t - R < p <= t

Only parts of constant size have a mask: no T x S matrix, no whole prefix in floating point, no loop over
tokens. Rows may have different lengths: the chunk's own keys sit at the same place relative to every row's
queries, and only blocks in which the lengths differ need a mask. Keys and values are read side by side, of
one width (`Packing`). Each of the three tensors is stored in a format of its own; where a tensor is in a
float format, "recent" and "stored" are the same. The parts are merged by their log-sum-exp:

    out_p = softmax(s_p) v_p                   lse_p = log sum exp(s_p)
    out   = sum_p e^(lse_p - lse) out_p        lse   = log sum_p e^lse_p

Merging is associative; the neutral element is out = 0 with lse = NOTHING, a finite number so low that its
weight beside any real score is exactly 0 (no -inf - -inf). How a part is computed is up to the device alone:

    cpu            torch's flash kernel (the one behind scaled_dot_product_attention, which hides the lse)
    cuda           torch's memory-efficient kernel; float32 products for parts with a mask, which are small
    anything else  float32 products in blocks of queries
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.projections import Heads, Packing, share_heads
from dba_core.cache.layer import LayerCache
from dba_core.cache.store import TensorStore
from dba_core.contracts import NullKV, TokenWriter

KEY_BLOCK = 1024
QUERY_BLOCK = 128
#: Queries of a block of products.
PRODUCT_BLOCK = 256
NOTHING = -1e30


@torch.no_grad()
def prefill_attention(
    heads: Heads,
    cache: LayerCache,
    *,
    null: NullKV | None = None,
    counts: Sequence[int] | None = None,
    writer: TokenWriter | None = None,
) -> Tensor:
    """Append the chunk's keys and values to `cache` and attend: [B,H,T,Dv] in the queries' dtype.

    counts: row b takes its first counts[b] tokens only (None: all T); outputs after them are zero. writer:
    as in `LayerCache.append`, which also says what is raised.
    """
    v_width = heads.v.shape[-1]
    q_dtype = heads.q_geo.dtype
    # half precision only where there are kernels for it
    halves = q_dtype == torch.float64 or heads.q_geo.device.type == "cuda"
    packing = Packing.of(heads.k_sem, heads.k_geo, v=heads.v, dtype=q_dtype if halves else torch.float32)
    reader = KeptKeys(cache=cache, packing=packing)
    past = _Past(lengths=cache.lengths, window=reader.window, device=cache.lengths_device.device)
    newest = reader.newest(past.n_recent) if past.n_recent else None
    cache.append(heads.k_sem, heads.k_geo, heads.v, counts=counts, writer=writer)

    real = _real_tokens(heads.q_geo, counts)
    if real is not None:  # the others may hold anything
        heads = Heads(*(each.masked_fill(~real[:, None, :, None], 0.0) for each in heads))
    q = packing.queries(heads.q_sem, heads.q_geo)  # [B, H, T, W]
    state = nothing(q, width=packing.width) if null is None else one_key(q, *packing.null(null))
    _add_past(state, q, past, reader)
    if past.equal and real is None:  # all rows have the chunk at the same place: it is read back
        own = reader.stored(past.lengths[0], past.lengths[0] + q.shape[2])
    else:
        own = reader.of_tokens(heads, recent=False)
    _add_chunk(state, q, past, own, newest, heads, reader)
    out = state.out[..., :v_width].to(heads.v.dtype)
    return out if real is None else torch.where(real[:, None, :, None], out, 0.0)


@attrs.frozen(eq=False)
class Keys:
    """k and v [B,G,S,W]."""

    k: Tensor
    v: Tensor

    def part(self, start: int, stop: int) -> Keys:
        """Keys start..stop-1, as views."""
        return Keys(self.k[:, :, start:stop], self.v[:, :, start:stop])

    def joined(self, other: Keys) -> Keys:
        """These keys, then the other's."""
        return Keys(torch.cat([self.k, other.k], dim=2), torch.cat([self.v, other.v], dim=2))


@attrs.frozen(kw_only=True, eq=False)
class KeptKeys:
    """Reads one cache, packed."""

    cache: LayerCache
    packing: Packing

    @property
    def window(self) -> int:
        """How many of the newest tokens a query reads as recent; 0 where that makes no difference."""
        quantized = any(store.quantized and store.head_dim for store in self._stores)
        return self.cache.residual_len if quantized else 0

    def stored(self, start: int, stop: int) -> Keys:
        """Positions start..stop-1 as stored; zeros past a row's length."""
        dtype = self.packing.dtype
        return self._side_by_side(store.stored(start, stop, dtype=dtype) for store in self._stores)

    def of_tokens(self, heads: Heads, *, recent: bool) -> Keys:
        """The tokens of `heads` as the residual window holds them, or as the cache stores them."""
        read = TensorStore.as_recent if recent else TensorStore.as_stored
        tokens = zip(self._stores, (heads.k_sem, heads.k_geo, heads.v), strict=True)
        return self._side_by_side(read(store, x, dtype=self.packing.dtype) for store, x in tokens)

    def newest(self, count: int) -> Keys:
        """The newest `count` tokens of every row as the residual window holds them, the last one last.

        A row with fewer than `count` has zeros in front. To be read before an append writes over them.
        """
        lengths = torch.tensor(self.cache.lengths, device=self.cache.lengths_device.device)
        positions = lengths.unsqueeze(1) + torch.arange(-count, 0, device=lengths.device)  # [B, count]
        return self._side_by_side(_newest(store, positions, self.packing.dtype) for store in self._stores)

    @property
    def _stores(self) -> tuple[TensorStore, TensorStore, TensorStore]:
        return self.cache.k_sem, self.cache.k_geo, self.cache.v

    def _side_by_side(self, read: Iterable[Tensor]) -> Keys:
        k_sem, k_geo, v = read
        kv_heads = k_geo.shape[1]
        return Keys(*self.packing.tokens(share_heads(k_sem, kv_heads), k_geo, share_heads(v, kv_heads)))


def _newest(store: TensorStore, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The tokens at positions [B,n] from the ring, or from a float format's storage: [B,G,n,D]."""
    plane = store.codes if store.recent_ring is None else store.recent_ring
    index = (positions % plane.shape[2])[:, None, :, None]  # [B, 1, n, 1]
    values = plane.gather(2, index.expand(-1, store.n_heads, -1, store.head_dim)).to(dtype)
    return values.masked_fill((positions < 0)[:, None, :, None], 0.0)


@attrs.frozen(kw_only=True)
class _Past:
    """The rows' lengths before the chunk, and the window R."""

    lengths: tuple[int, ...]
    window: int
    device: torch.device

    @property
    def equal(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    @property
    def n_recent(self) -> int:
        """How many past tokens some query of the chunk may read as recent."""
        return min(max(self.window - 1, 0), max(self.lengths))

    def stored_for(self, query: int) -> int:
        """Positions below this are past and read as stored, in every row, by this query and later ones."""
        shortest = min(self.lengths)
        return shortest if not self.window else max(0, min(shortest, shortest + query - self.window + 1))

    def stored_until(self, query: int) -> int:
        """Positions from here on are in no row past and read as stored by this query or earlier ones."""
        longest = max(self.lengths)
        return longest if not self.window else min(longest, longest + query - self.window + 1)

    def column(self) -> Tensor:
        """The lengths as [B,1,1,1] ([1,1,1,1] where all are equal)."""
        rows = self.lengths[:1] if self.equal else self.lengths
        return torch.tensor(rows, device=self.device)[:, None, None, None]


def _add_past(state: Partial, q: Tensor, past: _Past, reader: KeptKeys) -> None:
    """What is read as stored of the tokens before the chunk."""
    q_len = q.shape[2]
    far = past.stored_for(0)
    for start, stop in _blocks(0, far, KEY_BLOCK):
        keys = reader.stored(start, stop)
        state.absorb(partial_attention(q, keys.k, keys.v))
    head = min(q_len, max(past.window - 1, 0))  # the queries whose window reaches before the chunk
    spans = [*_blocks(0, head, QUERY_BLOCK), *([(head, q_len)] if head < q_len else [])]
    for start, stop in _blocks(far, max(past.lengths), KEY_BLOCK):
        keys = reader.stored(start, stop)
        for first, last in spans:
            end = min(stop, past.stored_until(last - 1))
            if end <= start:
                continue
            mask = None if end <= past.stored_for(first) else _past_mask(past, start, end, first, last)
            seen = keys.part(0, end - start)
            state.rows(first, last).absorb(partial_attention(q[:, :, first:last], seen.k, seen.v, mask=mask))


def _past_mask(past: _Past, start: int, stop: int, first: int, last: int) -> Tensor:
    """[B or 1, 1, queries or 1, keys]: position p is before the chunk, and no longer recent for the query."""
    positions = torch.arange(start, stop, device=past.device)
    lengths = past.column()
    mask = positions < lengths  # [B, 1, 1, keys]
    if past.window and first < past.window - 1:
        queries = torch.arange(first, last, device=past.device).unsqueeze(-1)
        mask = mask & (positions <= lengths + queries - past.window)
    return mask


def _add_chunk(
    state: Partial,
    q: Tensor,
    past: _Past,
    stored: Keys,
    newest: Keys | None,
    heads: Heads,
    reader: KeptKeys,
) -> None:
    """What is read of the chunk, and of the past as recent. Positions are relative to the chunk's start."""
    q_len, window = q.shape[2], past.window
    if not window:
        state.absorb(partial_attention(q, stored.k, stored.v, causal=True))
        return
    recent = reader.of_tokens(heads, recent=True)
    if newest is not None:
        recent = newest.joined(recent)  # positions -n_recent .. T-1
    n_recent = past.n_recent
    for first, last in _blocks(0, q_len, QUERY_BLOCK):
        rows, queries = state.rows(first, last), q[:, :, first:last]
        settled = max(0, first - window + 1)  # chunk positions below this are stored for all these queries
        if settled:
            far = stored.part(0, settled)
            rows.absorb(partial_attention(queries, far.k, far.v))
        oldest = max(-n_recent, first - window + 1)
        turning = range(settled, max(settled, last - window))
        near = recent.part(oldest + n_recent, last + n_recent)
        keys = stored.part(turning.start, turning.stop).joined(near)
        mask = _chunk_mask(past, turning, range(oldest, last), range(first, last))
        rows.absorb(partial_attention(queries, keys.k, keys.v, mask=mask))


def _chunk_mask(past: _Past, stored: range, recent: range, queries: range) -> Tensor:
    """[B or 1, 1, queries, stored + recent], positions relative to the chunk's start."""
    t, p, r = (torch.arange(x.start, x.stop, device=past.device) for x in (queries, stored, recent))
    t = t.unsqueeze(-1)
    in_window = (r <= t) & (r > t - past.window)
    mask = torch.cat([p <= t - past.window, in_window], dim=-1)[None, None]
    if past.equal:
        return mask
    exists = r >= -past.column()  # [B, 1, 1, recent]: a short row has no position that far back
    return mask & F.pad(exists, (len(stored), 0), value=True)


def _real_tokens(q: Tensor, counts: Sequence[int] | None) -> Tensor | None:
    """bool [B,T]: which tokens a row takes; None when every row takes all."""
    if counts is None or min(counts) == q.shape[2]:
        return None
    taken = torch.tensor(list(counts), device=q.device).unsqueeze(1)
    return torch.arange(q.shape[2], device=q.device) < taken


@attrs.frozen(eq=False)
class Partial:
    """out [B,H,T,D], normalized over its own keys; lse [B,H,T], natural; float32 (float64 for float64)."""

    out: Tensor
    lse: Tensor

    def rows(self, start: int, stop: int) -> Partial:
        """Queries start..stop-1, as views."""
        return Partial(self.out[:, :, start:stop], self.lse[:, :, start:stop])

    def absorb(self, other: Partial) -> None:
        """Merge `other` into this one, in place."""
        lse = torch.logaddexp(self.lse, other.lse)  # [B, H, T]
        self.out.mul_((self.lse - lse).exp_().unsqueeze(-1))
        self.out.addcmul_(other.out, (other.lse - lse).exp_().unsqueeze(-1))
        self.lse.copy_(lse)


def nothing(q: Tensor, *, width: int) -> Partial:
    """The neutral element for queries [B,H,T,*] and values of this width."""
    dtype = _state_dtype(q)
    return Partial(
        q.new_zeros(*q.shape[:3], width, dtype=dtype), q.new_full(q.shape[:3], NOTHING, dtype=dtype)
    )


def one_key(q: Tensor, key: Tensor, value: Tensor) -> Partial:
    """The part that is a single key [G,D] with value [G,Dv], seen by all queries [B,H,T,D]."""
    kv_heads, dtype = len(key), _state_dtype(q)
    grouped = torch.unflatten(q.to(dtype), 1, (kv_heads, -1))  # [B, G, H/G, T, D]
    lse = torch.einsum("bgrtd,gd->bgrt", grouped, key.to(dtype)).flatten(1, 2)
    value = value.to(dtype).repeat_interleave(q.shape[1] // kv_heads, dim=0)  # [H, Dv]
    return Partial(value[None, :, None].expand(*q.shape[:3], -1).contiguous(), lse)


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Partial:
    """q [B,H,T,W], k and v [B,G,S,W] of one dtype, T and S at least 1; scores are q.k.

    mask: bool [B or 1,1,T or 1,S], True is seen (a query that sees nothing here has no weight in a merge);
    causal: T = S, query t sees keys 0..t. float32 or float64 on the CPU; on CUDA half precision too.
    """
    device = q.device.type
    if device not in ("cpu", "cuda") or (device == "cuda" and mask is not None):
        return _products(q, k, v, mask, causal)
    batch, n_heads, q_len, width = q.shape
    kv_heads = k.shape[1]
    if kv_heads == n_heads:
        return _kernel(q, k, v, mask, causal)
    if causal or (mask is not None and mask.shape[2] > 1):
        k, v = (t.repeat_interleave(n_heads // kv_heads, dim=1) for t in (k, v))
        return _kernel(q, k, v, mask, causal)
    # Where all queries see the same keys, the query heads of a group are just more queries of one KV head.
    part = _kernel(q.reshape(batch, kv_heads, -1, width), k, v, mask, causal)
    return Partial(part.out.reshape(q.shape), part.lse.reshape(batch, n_heads, q_len))


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Partial:
    """As many heads in k and v as in q. Only the CPU's kernel takes a mask."""
    # The kernels read rows without looking at their stride, and torch.cat keeps that of its inputs.
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if q.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = q.new_zeros(mask.shape).masked_fill_(~mask, NOTHING).expand(len(q), 1, q.shape[2], -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=causal, attn_mask=bias, scale=1.0
        )
        return Partial(out, lse)
    width, q_len = q.shape[-1], q.shape[2]
    q, k, v = (F.pad(t, (0, -width % 8)) for t in (q, k, v))  # the kernel reads 16 bytes at a time
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, compute_log_sumexp=True, is_causal=causal, scale=1.0
    )
    return Partial(out[..., :width].float(), lse[:, :, :q_len])  # its lse is padded to a multiple of 32


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Partial:
    kv_heads, q_len, dtype = k.shape[1], q.shape[2], _state_dtype(q)
    k, v = k.to(dtype).unsqueeze(2), v.to(dtype).unsqueeze(2)  # [B, G, 1, S, W]
    outs, lses = [], []
    for start, stop in _blocks(0, q_len, PRODUCT_BLOCK):
        grouped = torch.unflatten(q[:, :, start:stop].to(dtype), 1, (kv_heads, -1))
        scores = grouped @ k.mT  # [B, G, H/G, n, S]
        if causal:
            rows = torch.arange(start, stop, device=q.device).unsqueeze(-1)
            scores = scores.masked_fill(torch.arange(k.shape[-2], device=q.device) > rows, NOTHING)
        if mask is not None:
            seen = mask if mask.shape[2] == 1 else mask[:, :, start:stop]
            scores = scores.masked_fill(~seen.unsqueeze(2), NOTHING)
        lse = torch.logsumexp(scores, dim=-1)  # [B, G, H/G, n]
        outs.append(((scores - lse.unsqueeze(-1)).exp_() @ v).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return Partial(torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _state_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _blocks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
