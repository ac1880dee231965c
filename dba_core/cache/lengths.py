"""How many tokens each batch row of a layer's cache holds, on the host and mirrored on the device.

The device tensor keeps its address for as long as the cache lives, so that kernels and CUDA graphs can read
it. `held_from[b]` is the oldest position of row b that the residual ring still holds: an append of T tokens
to length n overwrites everything before n + T - ring_size, and a truncation cannot bring it back. Owned by
`cache.layer`, read by `cache.store`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class RowLengths:
    """The lengths of all rows; changed as a whole."""

    def __init__(self, *, batch: int, ring_size: int, device: torch.device) -> None:
        self.host: tuple[int, ...] = (0,) * batch
        self.held_from: tuple[int, ...] = (0,) * batch
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
        grown = tuple(n + count for n, count in zip(self.host, counts, strict=True))
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
        return tuple(max(h, n - self.ring_size) for h, n in zip(self.held_from, lengths, strict=True))

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
