"""What `torch.compile` leaves as it is: a pass with a KV cache.

It appends to the cache, whose lengths are kept in Python, and calls a decode backend with addresses of
memory; neither is an operation of a graph, and the backends are compiled already. Compiled code calls it
between its graphs, with the same result; `fullgraph=True`, which allows no such call, raises torch's
`Unsupported` with this reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

_REASON = (
    "a pass with a KV cache is not compiled: it changes the cache in place and calls a decode backend. "
    "Compile with fullgraph=False, or without a cache"
)
F = TypeVar("F", bound=Callable[..., object])


def uncompiled(function: F) -> F:
    """The same function; compiled code calls it outside of its graphs."""
    disable = cast("Callable[..., F]", torch.compiler.disable)
    return disable(function, reason=_REASON)
