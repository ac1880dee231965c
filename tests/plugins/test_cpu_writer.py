"""The compiled writer: the same bits as the cache's own append, for every format, layout, value and chunk."""

from __future__ import annotations

import itertools

import pytest
import torch
from decode_cases import planes
from hypothesis import given, settings
from hypothesis import strategies as st

from dba_core.attention.decode import decode_request
from dba_core.attention.module import DecoupledAttention
from dba_core.cache.layer import LayerCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.errors import CacheError
from dba_core.registry import Registry
from dba_plugins.kv_formats.nf4 import NF4_LEVELS
from dba_plugins.native import threads

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

POLICIES = (
    "ksem=q4_0@32,kgeo=q8_0@32,v=nf4@32,resid=5",
    "ksem=q8_0@8,kgeo=q4_0@16,v=bf16",
    "ksem=fp16,kgeo=nf4@64,v=q4_0@128,resid=3",
    "ksem=fp32,kgeo=fp16,v=q8_0@256",
)
#: KV heads; widths of k_sem, k_geo and v: plain, odd, one value, blocks across heads, an absent path.
SIZES = ((4, 32, 64, 64), (3, 5, 6, 7), (1, 1, 2, 1), (2, 20, 24, 33), (2, 0, 8, 63))


def make(policy: str, sizes, *, batch: int = 2, capacity: int = 90) -> LayerCache:
    heads, sem, geo, v = sizes
    return LayerCache(
        registry=Registry.default(),
        k_sem=(heads, sem),
        k_geo=(heads, geo),
        v=(heads, v),
        batch=batch,
        capacity=capacity,
        policy=KVCachePolicy.parse(policy),
        rollback=3,
    )


def writer_for(cache: LayerCache):
    sem, geo, v = (spec.head_dim for spec in cache.specs)
    shape = AttentionShape(
        d_model=8,
        n_heads=12,
        n_kv_heads=cache.k_geo.n_heads,
        sem_head_dim=sem,
        geo_head_dim=geo,
        v_head_dim=v,
    )
    asked = decode_request(shape, cache, has_null=False, dtype=torch.float32)
    return Registry.default().select("decode_backend", "cpu", asked).build().writer


def tokens(sizes, count: int, *, batch: int = 2):
    """As the projections give them: heads beside each other in memory. Sizes from 1e-6 to 1e3."""
    heads, *widths = sizes
    size = 10.0 ** torch.randint(-6, 4, (batch, heads, count, 1))
    return [torch.randn(batch, count, heads, width).transpose(1, 2) * size for width in widths]


def same(a: LayerCache, b: LayerCache) -> None:
    assert a.lengths == b.lengths
    for one, other in zip(planes(a), planes(b), strict=True):
        assert torch.equal(one.view(torch.int8), other.view(torch.int8)), one.dtype


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_bits_in_any_chunks(policy: str, sizes) -> None:
    plain, written = make(policy, sizes), make(policy, sizes)
    writer = writer_for(written)
    for count in (1, 7, 40, 1, 33):
        x = tokens(sizes, count)
        plain.append(*x)
        written.append(*x, writer=writer)
        same(plain, written)
    for cache in (plain, written):
        cache.truncate(80)
    x = tokens(sizes, 2)
    plain.append(*x)
    written.append(*x, writer=writer)
    same(plain, written)


def test_ragged_rows() -> None:
    plain, written = make(POLICIES[0], SIZES[0]), make(POLICIES[0], SIZES[0])
    x = tokens(SIZES[0], 9)
    for cache in (plain, written):
        cache.append(*x, counts=(9, 2))
    writer, x = writer_for(written), tokens(SIZES[0], 4)
    plain.append(*x)
    written.append(*x, writer=writer)
    assert written.lengths == (13, 6)
    same(plain, written)


_ANY = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000)
_SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-140), 2.0**-126, 6e4, 0.5, 1.5, 2.5])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_ANY, _SPECIAL), min_size=24, max_size=24), st.sampled_from(POLICIES))
def test_the_same_bits_for_any_values(values: list[float], policy: str) -> None:
    sizes = (1, 8, 8, 8)
    plain, written = make(policy, sizes, batch=1), make(policy, sizes, batch=1)
    x = [part.reshape(1, 1, 1, 8) for part in torch.tensor(values).split(8)]
    plain.append(*x)
    written.append(*x, writer=writer_for(written))
    same(plain, written)


def test_ties_and_midpoints_fall_as_in_the_codecs() -> None:
    """Halves between two codes, and every midpoint of NF4 with its neighbours."""
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(NF4_LEVELS)])
    near = torch.cat([middles, middles.nextafter(torch.tensor(2.0)), middles.nextafter(torch.tensor(-2.0))])
    nf4 = torch.cat([torch.ones(1), near, torch.zeros(18)]).view(1, 1, 1, 64)
    q8 = torch.cat([torch.tensor([127.0]), torch.arange(-31, 32) + 0.5]).view(1, 1, 1, 64)
    q4 = torch.cat([torch.tensor([7.0]), (torch.arange(63) % 14 - 7) + 0.5]).view(1, 1, 1, 64)
    policy = "ksem=q4_0@64,kgeo=q8_0@64,v=nf4@64"
    plain, written = (make(policy, (1, 64, 64, 64), batch=1) for _ in range(2))
    plain.append(q4, q8, nf4)
    written.append(q4, q8, nf4, writer=writer_for(written))
    same(plain, written)
    assert len(set(written.v.codes.flatten().tolist())) > 10


@pytest.mark.parametrize(
    ("policy", "value"),
    [
        (POLICIES[0], torch.nan),
        (POLICIES[0], torch.inf),
        (POLICIES[0], -70000.0),
        (POLICIES[1], 3.0e38),
        (POLICIES[3], 65520.0),
        (POLICIES[3], -torch.inf),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(policy: str, value: float) -> None:
    cache, before = make(policy, SIZES[0]), make(policy, SIZES[0])
    first = tokens(SIZES[0], 6)
    for each in (cache, before):
        each.append(*first)
    writer = writer_for(cache)
    for where in ((0, 0, 0, 0), (1, 3, 39, 63)):
        x = [part.contiguous() for part in tokens(SIZES[0], 40)]
        x[1][where] = value
        with pytest.raises(CacheError, match="k_geo"):
            cache.append(*x, writer=writer)
        same(cache, before)


def test_other_dtypes_are_left_to_the_cache() -> None:
    plain, written = make(POLICIES[0], SIZES[0]), make(POLICIES[0], SIZES[0])
    x = [part.bfloat16() for part in tokens(SIZES[0], 3)]
    plain.append(*x)
    written.append(*x, writer=writer_for(written))
    same(plain, written)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if count == 5:
        monkeypatch.setattr(threads, "_gnu_openmp", lambda: None)
    plain, written = make(POLICIES[0], SIZES[0], capacity=900), make(POLICIES[0], SIZES[0], capacity=900)
    x, before = tokens(SIZES[0], 850), torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        plain.append(*x)
        written.append(*x, writer=writer_for(written))
    finally:
        torch.set_num_threads(before)
    same(plain, written)


def test_an_attention_layer_writes_with_it() -> None:
    layer = DecoupledAttention(AttentionConfig(d_model=32, n_heads=4))
    cache = layer.new_cache(batch=1, capacity=8, policy="ksem=q4_0,kgeo=q8_0,v=q4_0,resid=2")
    backend = layer.decode_backend(cache)
    assert type(backend.writer).__name__ == "CpuWriter"
    calls = []
    write = backend.writer.write
    backend.writer.write = lambda *args: calls.append(args) or write(*args)  # type: ignore[method-assign]
    layer(torch.randn(1, 5, 32), cache=cache)
    layer(torch.randn(1, 1, 32), cache=cache)
    assert len(calls) == 2
