"""The storage of one cached tensor (k_sem, k_geo or v) of one layer: codes, block scales, residual ring.

    codes  [B,G,T,C]        dtype and C are the format's (`FormatFacts`)
    scales [B,n_blocks,T]   block formats only
    ring   [B,G,R,D]        fp16, block formats with a residual window only; slot = position % R

Every token is quantized into codes and scales at once; the newest R are in the ring too. A width of 0 (an
absent path) has planes without elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from operator import add
from typing import TypeVar

import torch
from torch import Tensor

from dba_core.cache.places import Place
from dba_core.config.kv_policy import format_facts
from dba_core.contracts import FP16_MAX, CachedTensor, Encoded, KVCodec, KVFormatRequest
from dba_core.errors import CacheError, PluginError
from dba_core.registry import Registry
from dba_core.registry.contain import blame

_T = TypeVar("_T")


class RowLengths:
    """How many tokens each row of a layer's cache holds; changed as a whole.

    On the host, mirrored on the device in a tensor that keeps its address for as long as the cache lives, so
    that kernels and CUDA graphs can read it. `held_from[b]` is the oldest position of row b that the residual
    ring still holds: an append of T tokens to length n overwrites everything before n + T - ring_size, and a
    truncation cannot bring it back.
    """

    def __init__(self, *, batch: int, residual_len: int, ring_size: int, device: torch.device) -> None:
        self.host: tuple[int, ...] = (0,) * batch
        self.held_from: tuple[int, ...] = (0,) * batch
        self.residual_len = residual_len
        self.ring_size = ring_size
        self.device: Tensor = torch.zeros(batch, dtype=torch.int32, device=device)

    @property
    def longest(self) -> int:
        return max(self.host)

    @property
    def equal(self) -> bool:
        return min(self.host) == max(self.host)

    def advance(self, counts: Sequence[int]) -> None:
        """Add counts[b] tokens to row b, which have been written.

        While a CUDA graph is captured only the device's lengths grow, in the graph: see `follow_device`.
        """
        grown = tuple(map(add, self.host, counts))
        if min(counts) == max(counts):
            self.device.add_(counts[0])
        else:
            self._mirror(grown)
        if not self.capturing:
            self._grow(grown)

    def overwrite(self, counts: Sequence[int]) -> None:
        """The ring's slots of the next counts[b] positions were written, but the tokens do not count."""
        self.held_from = self._held_after(n + count for n, count in zip(self.host, counts, strict=True))

    def follow_device(self) -> None:
        """Take the lengths from the device, which has grown them without the host. Waits for the device."""
        self._grow(tuple(self.device.tolist()))

    @property
    def capturing(self) -> bool:
        """Whether the device's current stream records a CUDA graph instead of running."""
        return self.device.is_cuda and torch.cuda.is_current_stream_capturing()

    def _grow(self, lengths: tuple[int, ...]) -> None:
        self.host, self.held_from = lengths, self._held_after(lengths)

    def _held_after(self, lengths: Iterable[int]) -> tuple[int, ...]:
        size = self.ring_size
        return tuple([max(h, n - size) for h, n in zip(self.held_from, lengths, strict=True)])

    def shorten(self, lengths: Sequence[int]) -> None:
        """Set row b to lengths[b], which is not more than it has; an empty row has nothing left to hold."""
        self._mirror(lengths)
        self.held_from = tuple(h if n else 0 for h, n in zip(self.held_from, lengths, strict=True))
        self.host = tuple(lengths)

    def sync(self) -> None:
        """Make the device tensor say what the host says."""
        self._mirror(self.host)

    def _mirror(self, lengths: Sequence[int]) -> None:
        self.device.copy_(torch.tensor(lengths, dtype=torch.int32, device="cpu"))


class TensorStore:
    """One cached tensor. `codes`, `scales` and `recent_ring` are the planes for kernels (None: absent)."""

    def __init__(
        self,
        spec: CachedTensor,
        *,
        label: str,
        lengths: RowLengths,
        capacity: int,
        device: torch.device,
        registry: Registry,
    ) -> None:
        batch = len(lengths.host)
        self.spec = spec
        self.n_heads, self.head_dim = spec.n_heads, spec.head_dim
        self.format, self.qblock = spec.format, spec.qblock
        self.label = label
        self.capacity = capacity
        self._lengths = lengths
        facts = format_facts(spec.format)
        #: a block format: codes with scales
        self.quantized = facts.quantized
        #: the largest |x| that `append` takes
        self.max_input = facts.max_input
        self._who = ""
        self.codec: KVCodec | None = None
        if spec.head_dim:
            request = KVFormatRequest(
                n_heads=spec.n_heads, head_dim=spec.head_dim, qblock=spec.qblock, device=str(device)
            )
            self._who, self.codec = _codec(registry, spec.format, request)

        def plane(*sizes: int, dtype: str) -> Tensor:
            return torch.zeros(batch, *sizes, dtype=getattr(torch, dtype), device=device)

        self.codes = plane(spec.n_heads, capacity, facts.code_width(spec.head_dim), dtype=facts.code_dtype)
        self.scales: Tensor | None = None
        self.recent_ring: Tensor | None = None
        if self.quantized:
            n_blocks = facts.n_blocks(spec.n_heads * spec.head_dim, spec.qblock)
            self.scales = plane(n_blocks, capacity, dtype=facts.scale_dtype)
            if lengths.ring_size and spec.head_dim:
                self.recent_ring = plane(spec.n_heads, lengths.ring_size, spec.head_dim, dtype="float16")
                self.max_input = min(facts.max_input, FP16_MAX)

    def __repr__(self) -> str:
        spec, (batch, _, capacity, _) = self.spec, self.codes.shape
        layout = f"{spec.format}@{spec.qblock}" if self.quantized else spec.format
        return (
            f"TensorStore({self.label}, format={layout!r}, heads={spec.n_heads}, width={spec.head_dim}, "
            f"batch={batch}, capacity={capacity}, nbytes={self.nbytes}, device={str(self.codes.device)!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the planes."""
        planes = (self.codes, self.scales, self.recent_ring)
        return sum(plane.element_size() * plane.numel() for plane in planes if plane is not None)

    @torch.no_grad()
    def stored(
        self, start: int, stop: int, *, row: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Positions start..stop-1 as stored, dequantized: [B,G,stop-start,D], of one row [1,G,stop-start,D].

        In a ragged batch the positions past a row's length are zero. For float formats the result may be a
        view of the cache: do not write into it. Raises CacheError for positions that no row has.
        """
        self._check_range(start, stop)
        rows = self._rows(row)
        codes = self.codes[rows, :, start:stop]
        scales = None if self.scales is None else self.scales[rows, :, start:stop]
        values = self._decode(codes, scales).to(dtype)  # [B, G, n, D]
        if min(self._lengths.host[rows]) >= stop:
            return values
        position = torch.arange(start, stop, device=values.device)
        past = position >= self._lengths.device[rows].unsqueeze(1)  # [B, n]
        return values.masked_fill(past[:, None, :, None], 0.0)

    @torch.no_grad()
    def recent(
        self, start: int, stop: int, dtype: torch.dtype = torch.float32, *, row: int | None = None
    ) -> Tensor:
        """Positions start..stop-1 as the residual window holds them, fp16 values: [B,G,stop-start,D], of one
        row [1,G,stop-start,D].

        Without a ring (float formats, no residual window) this is `stored`. All rows must have equal lengths,
        unless one is named. Raises CacheError where the ring no longer holds a position.
        """
        if self.recent_ring is None:
            return self.stored(start, stop, row=row, dtype=dtype)
        self._check_range(start, stop)
        rows = self._rows(row)
        if row is None and not self._lengths.equal:
            raise CacheError(
                f"{self.label}: recent() needs rows of equal length, got lengths {list(self._lengths.host)}; "
                "name one with row="
            )
        held_from, longest = max(self._lengths.held_from[rows]), max(self._lengths.host[rows])
        if (start < held_from or stop > longest) and start < stop:
            missing = start if start < held_from else stop - 1
            raise CacheError(
                f"{self.label}: recent({start}, {stop}) asks for position {missing}, but the ring of "
                f"{self._lengths.ring_size} tokens holds {held_from} to {longest - 1}; "
                "read older ones with stored()"
            )
        slots = torch.arange(start, stop, device=self.recent_ring.device) % self._lengths.ring_size
        return self.recent_ring[rows, :, slots].to(dtype)

    @torch.no_grad()
    def read(
        self, start: int, stop: int, *, row: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Positions start..stop-1 as the newest query of each row reads them: [B,G,stop-start,D], of one row
        [1,G,stop-start,D]. The newest `residual_len` tokens are those of the residual window, older ones as
        `stored`; zeros past a row's length. Raises CacheError for positions that no row has.
        """
        rows, ring, window = self._rows(row), self.recent_ring, self._lengths.residual_len
        shortest, longest = min(self._lengths.host[rows]), max(self._lengths.host[rows])
        if ring is None or stop <= shortest - window or start >= stop:
            return self.stored(start, stop, row=row, dtype=dtype)
        self._check_range(start, stop)
        positions = torch.arange(start, stop, device=ring.device)
        held = ring[rows, :, positions % ring.shape[2]].to(dtype)  # [B, G, n, D]
        if start >= longest - window and stop <= shortest:
            return held
        lengths = self._lengths.device[rows].unsqueeze(1)
        recent = (positions < lengths) & (positions >= lengths - window)  # [B, n]
        return torch.where(recent[:, None, :, None], held, self.stored(start, stop, row=row, dtype=dtype))

    @torch.no_grad()
    def as_recent(self, x: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [B,G,T,D] as `recent` would return it right after an append: rounded to fp16, or as stored."""
        if self.recent_ring is None:
            return self.as_stored(x, dtype=dtype)
        return x.detach().to(torch.float16).to(dtype)

    @torch.no_grad()
    def as_stored(self, x: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [B,G,T,D] as `stored` would return it after an append: quantized and dequantized."""
        encoded = self.encode(x.detach())
        return self._decode(encoded.codes, encoded.scales).to(dtype)

    def encode(self, taken: Tensor) -> Encoded:
        """Codes and scales of tokens [N,G,n,D] that were checked; writes nothing. Raises PluginError where
        the codec raises, or its planes are not those that its format states.
        """
        if self.codec is None:
            return Encoded(taken, None)
        encoded = self._named(self.codec.encode, taken)
        self._check_form("codes", encoded.codes, self.codes, taken)
        if self.scales is not None:
            self._check_form("scales", encoded.scales, self.scales, taken)
        return encoded

    def _decode(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Values [B,G,n,D] of planes."""
        if self.codec is None:
            return codes
        values = self._named(self.codec.decode, codes, scales)
        wanted = (*codes.shape[:3], self.head_dim)
        if values.shape != wanted:
            raise PluginError(f"{self._who} decoded to shape {list(values.shape)} instead of {list(wanted)}")
        return values

    def _named(self, method: Callable[..., _T], *planes: Tensor | None) -> _T:
        """What the codec's method returns; what it raises gets the format's name."""
        done = False
        try:
            answer = method(*planes)
            done = True
        finally:
            if not done:
                blame(self._who)
        return answer

    def _check_form(self, name: str, got: Tensor | None, plane: Tensor, taken: Tensor) -> None:
        """What was encoded fits the plane that its format states."""
        wanted = (len(taken), plane.shape[1], taken.shape[2], *plane.shape[3:])
        if got is None or got.shape != wanted or got.dtype != plane.dtype:
            found = "none" if got is None else f"{got.dtype} {list(got.shape)}"
            raise PluginError(
                f"{self._who} encoded {name} {found}; its facts state {plane.dtype} {list(wanted)}. Choose "
                "another format or report it to the plugin's author."
            )

    def write(self, x: Tensor, encoded: Encoded, place: Place, undo: ExitStack) -> None:
        """Write the tokens of x [B,G,T,D] that `place` takes, already encoded; `undo` learns to take it back.

        That is the ring alone: codes and scales past the lengths are nobody's, and stay so until the lengths
        grow.
        """
        if not self.head_dim:
            return
        place.put(self.codes, encoded.codes)
        if self.scales is not None and encoded.scales is not None:
            place.put(self.scales, encoded.scales)
        if self.recent_ring is not None:
            for piece in place.in_ring(self._lengths.ring_size):
                undo.callback(piece.put, self.recent_ring, piece.get(self.recent_ring).clone())
                piece.put(self.recent_ring, piece.take(x))

    def _check_range(self, start: int, stop: int) -> None:
        longest = self._lengths.longest
        if not 0 <= start <= stop <= longest:
            raise CacheError(
                f"{self.label}: positions {start} to {stop} (exclusive) cannot be read; the cache holds "
                f"0 to {longest} (capacity {self.capacity})"
            )

    def _rows(self, row: int | None) -> slice:
        """All rows, or one."""
        if row is None:
            return slice(None)
        if not 0 <= row < len(self._lengths.host):
            raise CacheError(
                f"{self.label}: row {row} of {len(self._lengths.host)} batch rows cannot be read"
            )
        return slice(row, row + 1)


@functools.lru_cache(maxsize=256)
def _codec(registry: Registry, name: str, request: KVFormatRequest) -> tuple[str, KVCodec]:
    """The format's plugin as errors call it, and its codec, which all tensors of one kind and size share."""
    selection = registry.select("kv_format", name, request)
    codec: KVCodec = selection.build()
    return selection.who, codec
