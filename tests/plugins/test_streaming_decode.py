"""What only the streaming backend does: other dtypes of queries, its option, what it refuses.

That its numbers are right: test_decode_contract.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import POLICIES
from decode_cases import SIZES, expected, filled, queries, request
from tolerances import TOL

from dba_core.contracts import CachedTensor
from dba_core.errors import ConfigError, UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice

pytestmark = pytest.mark.torch


def streaming(block: int = 4):
    choice = PluginChoice("streaming", options={"block": block})
    return Registry.default().select("decode_backend", choice, request()).build()


def test_other_dtypes() -> None:
    sizes = SIZES[0]
    cache, tensors = filled(sizes, POLICIES[0], (13, 13))
    q_sem, q_geo = queries(sizes)
    for dtype in ("bfloat16", "float16", "float64"):
        cast = [q.to(getattr(torch, dtype)) for q in (q_sem, q_geo)]
        got = streaming().decode(*cast, cache, needs_lse=True)
        assert got.out.dtype == getattr(torch, dtype)
        assert got.lse.dtype == torch.float32
        out, _ = expected(*cast, cache, tensors, None)
        torch.testing.assert_close(got.out.double(), out, **TOL["float32" if dtype == "float64" else dtype])


def test_what_is_supported_and_what_is_not() -> None:
    registry = Registry.default()
    for sizes in SIZES:
        assert registry.select("decode_backend", "streaming", request(sizes)).name == "streaming"
    odd = CachedTensor(n_heads=3, head_dim=4, format="q8_0", qblock=32)
    with pytest.raises(UnsupportedError, match="a divisor of the number of query heads") as caught:
        registry.select("decode_backend", "streaming", request(k_geo=odd, dtype="int8"))
    assert [reason.subject for reason in caught.value.reasons] == ["heads of k_geo", "dtype"]
    with pytest.raises(ConfigError, match="block"):
        streaming(block=0)
    backend = streaming()
    assert backend.name == "streaming"
    assert not backend.fused_null
