"""Parts of the keys and their merge: every device's way against a dense softmax."""

from __future__ import annotations

import pytest
import torch
from tolerances import TOL

from dba_core.attention import prefill
from dba_core.attention.prefill import Partial, nothing, one_key, partial_attention

pytestmark = pytest.mark.torch


def dense(q, k, v, mask=None) -> Partial:
    share = q.shape[1] // k.shape[1]
    scores = q.double() @ k.double().repeat_interleave(share, 1).mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return Partial(
        torch.softmax(scores, -1) @ v.double().repeat_interleave(share, 1), torch.logsumexp(scores, -1)
    )


def close(got: Partial, wanted: Partial, dtype: str = "float32") -> None:
    torch.testing.assert_close(got.out.double(), wanted.out.double(), **TOL[dtype])
    torch.testing.assert_close(got.lse.double(), wanted.lse.double(), **TOL[dtype])


def tensors(q_len=7, kv_len=9, kv_heads=2, dtype=None):
    shapes = (2, 4, q_len, 6), (2, kv_heads, kv_len, 6), (2, kv_heads, kv_len, 6)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


WAYS = {
    "flash": partial_attention,
    "products": lambda q, k, v, *, mask=None, causal=False: prefill._products(q, k, v, mask, causal),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_part_is_a_softmax_over_its_keys(way: str, kv_heads: int, dtype: str, monkeypatch) -> None:
    monkeypatch.setattr(prefill, "PRODUCT_BLOCK", 3)
    q, k, v = tensors(kv_heads=kv_heads, dtype=getattr(torch, dtype))
    close(WAYS[way](q, k, v), dense(q, k, v), dtype)
    for shape in ((2, 1, 7, 9), (1, 1, 7, 9), (2, 1, 1, 9)):
        mask = torch.rand(shape) > 0.4
        mask[..., 0] = True
        close(WAYS[way](q, k, v, mask=mask), dense(q, k, v, mask), dtype)
    q, k, v = tensors(kv_len=7, kv_heads=kv_heads, dtype=getattr(torch, dtype))
    close(WAYS[way](q, k, v, causal=True), dense(q, k, v, torch.ones(7, 7, dtype=torch.bool).tril()), dtype)


@pytest.mark.parametrize("way", WAYS)
def test_inputs_of_any_stride(way: str) -> None:
    """The raw kernel reads garbage where the last stride is not 1."""
    q, k, v = (t.mT.contiguous().mT for t in tensors())
    assert q.stride(-1) != 1
    close(WAYS[way](q, k, v), dense(q, k, v))


@pytest.mark.parametrize("way", WAYS)
def test_merging_parts_in_any_order_gives_the_whole(way: str) -> None:
    q, k, v = tensors(kv_len=12)
    mask = torch.rand(2, 1, 7, 12) > 0.5
    mask[:, :, :, 5] = True
    mask[0, :, 3, :5] = False  # one query sees nothing of the first part
    whole = dense(q, k, v, mask)
    pieces = [slice(0, 4), slice(4, 5), slice(5, 12)]
    parts = [WAYS[way](q, k[:, :, p], v[:, :, p], mask=mask[..., p]) for p in pieces]
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        state = nothing(q, width=6)
        for index in order:
            state.absorb(parts[index])
        close(state, whole)
    tail = Partial(parts[1].out.clone(), parts[1].lse.clone())
    tail.absorb(parts[2])
    state = Partial(parts[0].out.clone(), parts[0].lse.clone())
    state.absorb(tail)
    close(state, whole)


def test_rows_are_views_that_merge_in_place() -> None:
    q, k, v = tensors()
    state = nothing(q, width=6)
    state.rows(2, 5).absorb(partial_attention(q[:, :, 2:5], k, v))
    close(state.rows(2, 5), dense(q[:, :, 2:5], k, v))
    assert state.out[:, :, :2].eq(0).all()
    assert state.lse[:, :, 5:].eq(prefill.NOTHING).all()


def test_one_key_is_a_part_of_its_own() -> None:
    q, k, v = tensors(kv_len=1)
    k[1], v[1] = k[0], v[0]
    close(one_key(q, k[0, :, 0], v[0, :, 0]), dense(q, k, v))


def test_large_scores_do_not_overflow() -> None:
    q, k, v = tensors()
    state = partial_attention(300 * q, 300 * k[:, :, :4], v[:, :, :4])
    state.absorb(partial_attention(300 * q, 300 * k[:, :, 4:], v[:, :, 4:]))
    assert torch.isfinite(state.out).all()
    torch.testing.assert_close(state.lse.double(), dense(300 * q, 300 * k, v).lse, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cuda_equals_the_dense_softmax(dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    q, k, v = (t.to(getattr(torch, dtype)) for t in tensors(q_len=45, kv_len=45))
    there = [t.cuda() for t in (q, k, v)]
    mask = torch.ones(45, 45, dtype=torch.bool).tril()
    for options, wanted in (({}, dense(q, k, v)), ({"causal": True}, dense(q, k, v, mask))):
        got = partial_attention(*there, **options)
        assert got.lse.dtype == torch.float32
        close(Partial(got.out.cpu(), got.lse.cpu()), wanted, dtype)
    got = partial_attention(*there, mask=mask[None, None].cuda())
    close(Partial(got.out.cpu(), got.lse.cpu()), dense(q, k, v, mask), dtype)
