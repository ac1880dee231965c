"""The streaming backend against a dense softmax: formats, windows, ragged rows, blocks, null token, NaN."""

from __future__ import annotations

import attrs
import pytest
from tolerances import TOL

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from attention_oracle import POLICIES  # noqa: E402

from dba_core.cache.layer import LayerCache  # noqa: E402
from dba_core.config.kv_policy import KVCachePolicy  # noqa: E402
from dba_core.config.plugins import PluginChoice  # noqa: E402
from dba_core.contracts import AttentionShape, CachedTensor, DecodeRequest, NullKV  # noqa: E402
from dba_core.errors import ConfigError, UnsupportedError  # noqa: E402
from dba_core.registry import Registry  # noqa: E402

#: (n_heads, heads of k_sem, of k_geo, of v, Ds, Dg, Dv).
SIZES = ((4, 4, 4, 4, 2, 4, 6), (4, 2, 2, 2, 3, 6, 5), (3, 1, 1, 1, 0, 8, 7), (6, 1, 3, 2, 5, 2, 1))
LENGTHS = ((13, 13), (13, 4), (1, 13), (0, 6))


def request(sizes=SIZES[0], **changes: object) -> DecodeRequest:
    n_heads, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    base = DecodeRequest(
        shape=AttentionShape(
            d_model=8, n_heads=n_heads, n_kv_heads=geo_heads, sem_head_dim=sem, geo_head_dim=geo, v_head_dim=v
        ),
        k_sem=CachedTensor(n_heads=sem_heads, head_dim=sem, format="fp16"),
        k_geo=CachedTensor(n_heads=geo_heads, head_dim=geo, format="fp16"),
        v=CachedTensor(n_heads=v_heads, head_dim=v, format="fp16"),
        residual_len=0,
        batch=2,
        capacity=16,
        has_null=False,
    )
    return attrs.evolve(base, **changes)


def streaming(block: int = 4):
    choice = PluginChoice("streaming", options={"block": block})
    return Registry.default().select("decode_backend", choice, request()).build()


def filled(sizes, policy: str, lengths, *, poison: bool = False):
    """A cache with rows of these lengths, and the k_sem, k_geo, v that went in, [2,G,13,D]."""
    _, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    cache = LayerCache(
        k_sem=(sem_heads, sem),
        k_geo=(geo_heads, geo),
        v=(v_heads, v),
        batch=2,
        capacity=16,
        policy=KVCachePolicy.parse(policy),
        rollback=2,
    )
    if poison:
        for plane in planes(cache):
            if plane.is_floating_point():
                plane.fill_(torch.nan)
    tensors = [torch.randn(2, g, 13, d) for g, d in ((sem_heads, sem), (geo_heads, geo), (v_heads, v))]
    cache.append(*tensors, counts=lengths)
    return cache, tensors


def planes(cache: LayerCache):
    stores = (cache.k_sem, cache.k_geo, cache.v)
    every = [plane for s in stores for plane in (s.codes, s.scales, s.recent_ring) if plane is not None]
    return [*every, cache.lengths_device]


def queries(sizes):
    return torch.randn(2, sizes[0], sizes[4]), torch.randn(2, sizes[0], sizes[5])


def random_null(sizes) -> NullKV:
    _, sem_heads, geo_heads, v_heads, sem, geo, v = sizes
    return NullKV(
        k_sem=torch.randn(sem_heads, sem), k_geo=torch.randn(geo_heads, geo), v=torch.randn(v_heads, v)
    )


def repeated(x, n_heads: int, dim: int):
    """One KV head per query head, so that tensors with different numbers of heads meet in the oracle."""
    return x.repeat_interleave(n_heads // x.shape[dim], dim=dim)


def expected(q_sem, q_geo, cache, tensors, null: NullKV | None):
    """out [B,H,Dv] and lse [B,H] in float64, row by row; the newest tokens are the input rounded to fp16."""
    n_heads, outs, lses = q_geo.shape[1], [], []
    for row, length in enumerate(cache.lengths):
        is_recent = torch.arange(length)[:, None] >= length - cache.residual_len
        keys = []
        for store, x in zip((cache.k_sem, cache.k_geo, cache.v), tensors, strict=True):
            stored = store.stored(0, length)[row].double()  # [G, length, D]
            recent = x[row, :, :length].half().double() if store.quantized else stored
            keys.append(repeated(torch.where(is_recent, recent, stored), n_heads, 0))
        if null is not None:
            nulls = (repeated(t.double(), n_heads, 0)[:, None] for t in (null.k_sem, null.k_geo, null.v))
            keys = [torch.cat([first, rest], dim=1) for first, rest in zip(nulls, keys, strict=True)]
        scores = torch.einsum("hd,hnd->hn", q_sem[row].double(), keys[0])
        scores = scores + torch.einsum("hd,hnd->hn", q_geo[row].double(), keys[1])
        outs.append(torch.einsum("hn,hnd->hd", torch.softmax(scores, dim=-1), keys[2]))
        lses.append(torch.logsumexp(scores, dim=-1))
    return torch.stack(outs), torch.stack(lses)


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_the_oracle(policy: str, number: int, with_null: bool) -> None:
    sizes = SIZES[number]
    null = random_null(sizes) if with_null else None
    for lengths in LENGTHS:
        cache, tensors = filled(sizes, policy, lengths)
        q_sem, q_geo = queries(sizes)
        out, lse = expected(q_sem, q_geo, cache, tensors, null)
        for block in (1, 4, 64):
            got = streaming(block).decode(q_sem, q_geo, cache, null=null, needs_lse=True)
            torch.testing.assert_close(got.out.double(), out, **TOL["float32"])
            torch.testing.assert_close(got.lse.double(), lse, **TOL["float32"])


def test_an_empty_row_gives_zeros_or_the_null_value() -> None:
    sizes = SIZES[1]
    cache, _ = filled(sizes, POLICIES[3], (0, 0))
    q_sem, q_geo = queries(sizes)
    got = streaming().decode(q_sem, q_geo, cache, needs_lse=True)
    assert got.out.eq(0).all()
    assert got.lse.eq(-torch.inf).all()
    null = random_null(sizes)
    got = streaming().decode(q_sem, q_geo, cache, null=null)
    assert got.lse is None
    torch.testing.assert_close(got.out, repeated(null.v, 4, 0).expand(2, -1, -1), **TOL["float32"])


@pytest.mark.parametrize("policy", POLICIES)
def test_reads_nothing_past_a_length_and_changes_nothing(policy: str) -> None:
    sizes = SIZES[1]
    state = torch.get_rng_state()
    clean, _ = filled(sizes, policy, (9, 2))
    torch.set_rng_state(state)
    dirty, _ = filled(sizes, policy, (9, 2), poison=True)
    q_sem, q_geo = queries(sizes)
    before = [plane.clone() for plane in planes(dirty)]
    wanted, got = (streaming().decode(q_sem, q_geo, cache, needs_lse=True) for cache in (clean, dirty))
    assert torch.isfinite(got.out).all()
    assert torch.equal(got.out, wanted.out)
    assert torch.equal(got.lse, wanted.lse)
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, planes(dirty), strict=True)
    )
    assert dirty.lengths == (9, 2)


def test_every_cached_token_and_no_other_row_matters() -> None:
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
        outs.append(streaming().decode(q_sem, q_geo, cache).out)
    for changed in outs[1:]:
        assert (changed[0] - outs[0][0]).abs().amax() > 1e-4
        assert torch.equal(changed[1], outs[0][1])


def test_large_scores_and_other_dtypes() -> None:
    sizes = SIZES[0]
    cache, tensors = filled(sizes, POLICIES[0], (13, 13))
    q_sem, q_geo = queries(sizes)
    out, _ = expected(400 * q_sem, 400 * q_geo, cache, tensors, None)
    got = streaming().decode(400 * q_sem, 400 * q_geo, cache).out
    torch.testing.assert_close(got.double(), out, rtol=1e-3, atol=1e-3)
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
