"""Every decode backend against a dense softmax: formats, windows, ragged rows, blocks, null token, NaN.

`BACKENDS` lists those that run on this machine; each of them is held to all of this.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import POLICIES
from decode_cases import SIZES, expected, filled, planes, queries, random_null, repeated, request
from tolerances import TOL

from dba_core.attention.decode import decode_request
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice

pytestmark = pytest.mark.torch

LENGTHS = ((13, 13), (13, 4), (1, 13), (0, 6))
#: Those for which tiles, vectors and partitions of a compiled backend are crossed, begun and left half full.
LONG = ((64, 65), (63, 0), (1, 257), (700, 8), (129, 128))
BACKENDS = {
    "streaming-1": PluginChoice("streaming", options={"block": 1}),
    "streaming-4": PluginChoice("streaming", options={"block": 4}),
    "streaming-64": PluginChoice("streaming", options={"block": 64}),
    "cpu": PluginChoice("cpu"),
}


@pytest.fixture(params=BACKENDS)
def decode(request: pytest.FixtureRequest):
    """Decodes with one backend, chosen for the cache as the attention does."""
    choice = BACKENDS[request.param]

    def run(q_sem, q_geo, cache, **more):
        shape = shape_of(q_sem, q_geo, cache)
        asked = decode_request(shape, cache, has_null=more.get("null") is not None, dtype=q_geo.dtype)
        backend = Registry.default().select("decode_backend", choice, asked).build()
        return backend.decode(q_sem, q_geo, cache, **more)

    return run


def shape_of(q_sem, q_geo, cache):
    sizes = (
        q_geo.shape[1],
        *(spec.n_heads for spec in cache.specs),
        *(spec.head_dim for spec in cache.specs),
    )
    return request(sizes).shape


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_oracle(decode, policy: str, number: int, with_null: bool) -> None:
    sizes = SIZES[number]
    null = random_null(sizes) if with_null else None
    for lengths in LENGTHS:
        cache, tensors = filled(sizes, policy, lengths)
        q_sem, q_geo = queries(sizes)
        out, lse = expected(q_sem, q_geo, cache, tensors, null)
        got = decode(q_sem, q_geo, cache, null=null, needs_lse=True)
        torch.testing.assert_close(got.out.double(), out, **TOL["float32"])
        torch.testing.assert_close(got.lse.double(), lse, **TOL["float32"])


@pytest.mark.parametrize("lengths", LONG)
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_oracle_at_length(decode, policy: str, lengths: tuple[int, int]) -> None:
    sizes = (4, 2, 2, 2, 32, 16, 24)
    null = random_null(sizes) if sum(lengths) % 2 else None
    cache, tensors = filled(sizes, policy, lengths, total=max(lengths))
    q_sem, q_geo = (q / 6 for q in queries(sizes))
    out, lse = expected(q_sem, q_geo, cache, tensors, null)
    got = decode(q_sem, q_geo, cache, null=null, needs_lse=True)
    torch.testing.assert_close(got.out.double(), out, **TOL["float32"])
    torch.testing.assert_close(got.lse.double(), lse, **TOL["float32"])


def test_an_empty_row_gives_zeros_or_the_null_value(decode) -> None:
    sizes = SIZES[1]
    cache, _ = filled(sizes, POLICIES[3], (0, 0))
    q_sem, q_geo = queries(sizes)
    got = decode(q_sem, q_geo, cache, needs_lse=True)
    assert got.out.eq(0).all()
    assert got.lse.eq(-torch.inf).all()
    null = random_null(sizes)
    got = decode(q_sem, q_geo, cache, null=null)
    assert got.lse is None
    torch.testing.assert_close(got.out, repeated(null.v, 4, 0).expand(2, -1, -1), **TOL["float32"])


@pytest.mark.parametrize("policy", POLICIES)
def test_reads_nothing_past_a_length_and_changes_nothing(decode, policy: str) -> None:
    sizes = SIZES[1]
    state = torch.get_rng_state()
    clean, _ = filled(sizes, policy, (9, 2))
    torch.set_rng_state(state)
    dirty, _ = filled(sizes, policy, (9, 2), poison=True)
    q_sem, q_geo = queries(sizes)
    before = [plane.clone() for plane in planes(dirty)]
    wanted, got = (decode(q_sem, q_geo, cache, needs_lse=True) for cache in (clean, dirty))
    assert torch.isfinite(got.out).all()
    assert torch.equal(got.out, wanted.out)
    assert torch.equal(got.lse, wanted.lse)
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, planes(dirty), strict=True)
    )
    assert dirty.lengths == (9, 2)


def test_every_cached_token_and_no_other_row_matters(decode) -> None:
    sizes = SIZES[0]
    q_sem, q_geo = queries(sizes)
    outs = []
    for token in (None, *range(13)):
        torch.manual_seed(3)
        cache, tensors = filled(sizes, POLICIES[0], (0, 0))
        if token is not None:
            for tensor in tensors:
                tensor[0, :, token] += 1.0
        cache.append(*tensors)
        outs.append(decode(q_sem, q_geo, cache).out)
    for changed in outs[1:]:
        assert (changed[0] - outs[0][0]).abs().amax() > 1e-4
        assert torch.equal(changed[1], outs[0][1])


def test_large_scores(decode) -> None:
    sizes = SIZES[0]
    cache, tensors = filled(sizes, POLICIES[0], (13, 13))
    q_sem, q_geo = queries(sizes)
    out, _ = expected(400 * q_sem, 400 * q_geo, cache, tensors, None)
    got = decode(400 * q_sem, 400 * q_geo, cache).out
    torch.testing.assert_close(got.double(), out, rtol=1e-3, atol=1e-3)
