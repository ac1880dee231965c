"""The contract of weight formats: how a model's matrices lie in memory while it is only run.

y = x W^T        W [N,K]: N outputs of K inputs, packed once; what is computed with is what `rows` gives
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@attrs.frozen(kw_only=True)
class WeightRequest:
    """A weight [rows, columns] and the hidden states that it is multiplied with.

    table: it is the token embedding, or the output head that goes with it, of which single rows matter most;
    a format may hold it with more bits than it states.
    """

    rows: int
    columns: int
    device: str = "cpu"
    dtype: str = "float32"
    table: bool = False


@runtime_checkable
class PackedWeight(Protocol):
    """A weight [N,K] as it lies in memory. It never changes, has no gradient, can be copied and pickled."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        ...

    @property
    def nbytes(self) -> int:
        """What it takes of memory, bytes."""
        ...

    @property
    def device(self) -> torch.device: ...

    def product(self, x: Tensor) -> Tensor:
        """x [...,K] -> x W^T [...,N], in x's dtype; every row of x for itself."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """The values of some rows, as an embedding looks them up: index [...] -> [...,K] float32."""
        ...


@attrs.frozen(kw_only=True)
class WeightFacts:
    """bits: per value of a large weight, scales included. round_trip_error: relative L2 error of N(0,1)
    values, at most. product_error: of a product with float32 x, at most, in units of max|x| sum|w| of a row.
    """

    bits: float
    round_trip_error: float
    product_error: float
