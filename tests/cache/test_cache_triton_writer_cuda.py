"""The quantizing append on an NVIDIA GPU, against the codecs on the same GPU. Run by `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch
from test_cache_layer import POLICIES, make, part, stores, tokens

from dba_core.errors import CacheError
from dba_plugins.decode.triton.writer import TritonWriter

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


def on_gpu(count: int):
    return [x.cuda() for x in tokens(count)]


def same_bits(plain, written) -> None:
    assert plain.lengths == written.lengths
    for a, b in zip(stores(plain), stores(written), strict=True):
        for name in ("codes", "scales", "recent_ring"):
            one, other = vars(a)[name], vars(b)[name]
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("policy", POLICIES)
def test_bits_are_those_of_the_codecs(policy: str) -> None:
    x = on_gpu(20)
    plain, written = make(policy, device="cuda"), make(policy, device="cuda")
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        plain.append(*part(x, start, stop))
        written.append(*part(x, start, stop), writer=TritonWriter())
    written.check_values()
    same_bits(plain, written)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_captured_append_follows_the_lengths(policy: str) -> None:
    x, writer = on_gpu(12), TritonWriter()
    plain, written = make(policy, device="cuda"), make(policy, device="cuda")
    written.append(*part(x, 0, 1), writer=writer)
    slot = [each.clone() for each in part(x, 1, 2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written.append(*slot, writer=writer)
    for t in range(1, 12):
        for held, new in zip(slot, part(x, t, t + 1), strict=True):
            held.copy_(new)
        graph.replay()
    written.sync()
    plain.append(*part(x, 0, 1))
    for t in range(1, 12):
        plain.append(*part(x, t, t + 1))
    same_bits(plain, written)


def test_a_bad_value_in_a_replay_is_found_out() -> None:
    x, writer, cache = on_gpu(1), TritonWriter(), make(device="cuda")
    cache.append(*x, writer=writer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cache.append(*x, writer=writer)
    x[0].fill_(torch.nan)
    graph.replay()
    with pytest.raises(CacheError, match="not finite, or exceeds"):
        cache.sync()


def test_the_first_append_is_not_captured() -> None:
    x, cache = on_gpu(1), make(device="cuda")
    with (
        pytest.raises(CacheError, match="the first append of a cache cannot be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        cache.append(*x, writer=TritonWriter())
