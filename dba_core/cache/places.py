"""Where an append to a layer's cache goes: token by token, row by row.

`Span` is the fast path of an append (all rows of equal length take the same number of tokens: slices),
`Scatter` the ragged one (index tensors, no loop over tokens). Planes are [B,X,T,...] or [B,X,T]; tokens are
axis 2 everywhere. The same places, taken modulo the ring's size, address the residual ring.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Span:
    """Tokens `token .. token+count-1` of every row go to positions `start .. start+count-1`."""

    token: int
    start: int
    count: int

    def take(self, x: Tensor) -> Tensor:
        """The tokens to be written: [B,G,T,D] -> [B,G,count,D], a view."""
        return x[:, :, self.token : self.token + self.count]

    def get(self, plane: Tensor) -> Tensor:
        """What the plane holds there: [B,X,count,...], a view."""
        return plane[:, :, self.start : self.start + self.count]

    def put(self, plane: Tensor, values: Tensor) -> None:
        """Write values [B,X,count,...], converted to the plane's dtype."""
        self.get(plane).copy_(values)

    def origin(self, row: int, token: int) -> tuple[int, int, int]:
        """(batch row, token of the input, position in the cache) of an entry of `take`'s result."""
        return row, self.token + token, self.start + token

    def in_ring(self, size: int) -> list[Place]:
        """The newest `size` of these tokens, at position % size: one span, or two where it wraps."""
        skip = max(0, self.count - size)
        token, count = self.token + skip, self.count - skip
        slot = (self.start + skip) % size
        head = min(count, size - slot)
        pieces: list[Place] = [Span(token, slot, head)]
        if head < count:
            pieces.append(Span(token + head, 0, count - head))
        return pieces


@attrs.frozen(eq=False)
class Scatter:
    """Token `tokens[i]` of row `rows[i]` goes to position `positions[i]`; int64 tensors [N] on the device.

    `ends[i]` is the length of row `rows[i]` afterwards.
    """

    rows: Tensor
    tokens: Tensor
    positions: Tensor
    ends: Tensor

    @classmethod
    def ragged(cls, lengths: Sequence[int], counts: Sequence[int], device: torch.device) -> Scatter:
        """Row b gets its first counts[b] tokens at positions lengths[b] onwards."""
        begin, many = (torch.tensor(sizes, device="cpu") for sizes in (lengths, counts))
        rows = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), many)  # [N]
        first = (many.cumsum(0) - many)[rows]
        tokens = torch.arange(rows.numel(), device="cpu") - first
        index = torch.stack((rows, tokens, begin[rows] + tokens, (begin + many)[rows])).to(device)  # [4, N]
        return cls(*index.unbind(0))

    def take(self, x: Tensor) -> Tensor:
        """[B,G,T,D] -> [N,G,1,D]: each token as a row of its own."""
        return x[self.rows, :, self.tokens].unsqueeze(2)

    def get(self, plane: Tensor) -> Tensor:
        """[N,X,1,...], a copy."""
        return plane[self.rows, :, self.positions].unsqueeze(2)

    def put(self, plane: Tensor, values: Tensor) -> None:
        """Write values [N,X,1,...], converted to the plane's dtype."""
        plane[self.rows, :, self.positions] = values.select(2, 0).to(plane.dtype)

    def origin(self, row: int, token: int) -> tuple[int, int, int]:
        """(batch row, token of the input, position in the cache) of an entry of `take`'s result."""
        return int(self.rows[row]), int(self.tokens[row]), int(self.positions[row])

    def in_ring(self, size: int) -> list[Place]:
        """The newest `size` tokens of each row, at position % size."""
        kept = self.positions >= self.ends - size
        fields = (self.rows, self.tokens, self.positions % size, self.ends)
        return [Scatter(*(field[kept] for field in fields))]


Place = Span | Scatter
