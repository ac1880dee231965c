"""The dense oracle against loops over single scores."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import TOL

from dba_core.attention.reference import reference_attention
from dba_core.contracts import NullKV

pytestmark = pytest.mark.torch


def by_loops(q_sem, q_geo, k_sem, k_geo, v, *, visible, null=None):
    """visible(b, h, t) -> the positions that are seen."""
    batch, n_heads, q_len, _ = q_geo.shape
    share = n_heads // k_geo.shape[1]
    out = torch.zeros(batch, n_heads, q_len, v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            for t in range(q_len):
                pairs = [
                    (k_sem[b, h // share, p], k_geo[b, h // share, p], v[b, h // share, p])
                    for p in visible(b, h, t)
                ]
                if null is not None:
                    pairs.append((null.k_sem[h // share], null.k_geo[h // share], null.v[h // share]))
                scores = [float(q_sem[b, h, t] @ s + q_geo[b, h, t] @ g) for s, g, _ in pairs]
                total = sum(math.exp(score) for score in scores)
                for score, (_, _, value) in zip(scores, pairs, strict=True):
                    out[b, h, t] += math.exp(score) / total * value
    return out


def tensors(batch=2, n_heads=4, kv_heads=2, q_len=3, kv_len=5, sem=3, geo=4, width=2):
    shapes = [(n_heads, q_len, sem), (n_heads, q_len, geo), (kv_heads, kv_len, sem), (kv_heads, kv_len, geo)]
    return [torch.randn(batch, *s, dtype=torch.float64) for s in [*shapes, (kv_heads, kv_len, width)]]


def null_of(kv_heads=2, sem=3, geo=4, width=2):
    return NullKV(
        **{n: torch.randn(kv_heads, w).double() for n, w in (("k_sem", sem), ("k_geo", geo), ("v", width))}
    )


@pytest.mark.parametrize("with_null", [False, True])
def test_queries_are_the_newest_tokens(with_null: bool) -> None:
    args, null = tensors(), null_of() if with_null else None
    expected = by_loops(*args, visible=lambda b, h, t: range(3 + t), null=null)
    torch.testing.assert_close(reference_attention(*args, null=null), expected, **TOL["float64"])


def test_offset_and_lengths_per_row() -> None:
    args = tensors()
    out = reference_attention(*args, q_offset=[0, 2], lengths=[5, 3])
    expected = by_loops(*args, visible=lambda b, h, t: range(t + 1) if b == 0 else range(min(3, 2 + t + 1)))
    torch.testing.assert_close(out, expected, **TOL["float64"])
    aligned = reference_attention(*args, lengths=[5, 3])
    expected = by_loops(*args, visible=lambda b, h, t: range((2 if b == 0 else 0) + t + 1))
    torch.testing.assert_close(aligned, expected, **TOL["float64"])


def test_mask_joins_causality_and_rows_without_keys_are_zero() -> None:
    args = tensors(q_len=5)
    mask = torch.rand(2, 4, 5, 5) > 0.5
    mask[0, 1, 2] = False
    expected = by_loops(*args, visible=lambda b, h, t: [p for p in range(t + 1) if mask[b, h, t, p]])
    out = reference_attention(*args, mask=mask)
    torch.testing.assert_close(out, expected, **TOL["float64"])
    assert out[0, 1, 2].abs().max() == 0


def test_not_causal_and_no_semantic_path() -> None:
    args = tensors(sem=0)
    expected = by_loops(*args, visible=lambda b, h, t: range(5))
    torch.testing.assert_close(reference_attention(*args, causal=False), expected, **TOL["float64"])


def test_no_keys_gives_zeros_and_finite_gradients() -> None:
    args = [t.requires_grad_() for t in tensors(kv_len=0)]
    out = reference_attention(*args, causal=False)
    assert out.shape == (2, 4, 3, 2)
    assert out.abs().max() == 0
    out.sum().backward()
    assert torch.isfinite(args[0].grad).all()
