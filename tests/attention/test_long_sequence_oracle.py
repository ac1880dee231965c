"""The long-sequence path against its definition: values, gradients, exact attention as its limit."""

from __future__ import annotations

import pytest
import torch
from long_sequence_oracle import (
    Inputs,
    Setup,
    draw,
    draw_null,
    long_sequence_oracle,
    mean_of_blocks,
)
from tolerances import TOL

from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.projections import Heads
from dba_core.attention.reference import reference_attention

pytestmark = pytest.mark.torch

LENGTHS = (1, 63, 64, 65, 640, 1000)
SETUPS = {
    "plain": Setup(block=16, window=128, chunk=64, kv_heads=4),
    "grouped, null": Setup(block=16, window=128, chunk=64, kv_heads=2, null=True),
    "nothing divides, null": Setup(block=7, window=40, chunk=30, kv_heads=1, null=True),
    "nothing divides, no mass": Setup(block=24, window=31, chunk=37, kv_heads=2, mass=False),
    "no window": Setup(block=8, window=0, chunk=20, kv_heads=2),
    "no window, null, no mass": Setup(block=64, window=0, chunk=64, kv_heads=4, null=True, mass=False),
    "window of everything": Setup(block=16, window=1000, chunk=64, null=True),
    "chunk of everything": Setup(block=16, window=10, chunk=2000),
    "blocks of one": Setup(block=1, window=3, chunk=50, null=True),
    "chunk of one": Setup(block=5, window=600, chunk=1),
}
CARRIERS = ("mask", "columns")


def long_sequence(inputs: Inputs, setup: Setup, *, null=None, summarizer=mean_of_blocks, **options):
    return long_sequence_attention(
        Heads(*inputs),
        plan=setup.plan(inputs.v.shape[2]),
        summarizer=summarizer,
        null=null,
        **options,
    )


def row_error(actual, expected) -> float:
    """The largest relative L2 error of one query's output."""
    return float(((actual.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", SETUPS)
def test_equals_the_definition(name: str, length: int) -> None:
    setup = SETUPS[name]
    inputs = draw(length, kv_heads=setup.kv_heads, batch=1 + (length < 100), dtype=torch.float32)
    null = draw_null(inputs) if setup.null else None
    out = long_sequence(inputs, setup, null=null)
    assert out.dtype == torch.float32
    assert row_error(out, long_sequence_oracle(inputs, setup, null=null)) <= 1e-5


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "name", ["plain", "nothing divides, null", "no window, null, no mass", "blocks of one"]
)
def test_gradients_equal_those_of_the_definition(name: str, carrier: str) -> None:
    setup = SETUPS[name]
    inputs = Inputs(*(x.requires_grad_() for x in draw(150, kv_heads=setup.kv_heads, batch=1)))
    null = draw_null(inputs) if setup.null else None
    of = list(inputs)
    if null is not None:
        of += [x.requires_grad_() for x in (null.k_sem, null.k_geo, null.v)]
    expected = long_sequence_oracle(inputs, setup, null=null)
    grad = torch.randn_like(expected)
    out = long_sequence(inputs, setup, null=null, carrier=carrier)
    torch.testing.assert_close(out, expected, **TOL["float64"])
    for ours, theirs in zip(
        torch.autograd.grad(out, of, grad), torch.autograd.grad(expected, of, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **TOL["float64"])


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("widths", [(0, 4, 5), (3, 4, 12), (8, 8, 2), (1, 2, 1)])
def test_any_head_widths(widths: tuple[int, int, int], carrier: str) -> None:
    setup = Setup(block=8, window=20, chunk=16, null=True)
    inputs = draw(100, widths=widths, dtype=torch.float32)
    null = draw_null(inputs)
    out = long_sequence(inputs, setup, null=null, carrier=carrier)
    expected = long_sequence_oracle(inputs, setup, null=null)
    torch.testing.assert_close(out.double(), expected, **TOL["float32"])


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("window", [300, 301, 10_000])
def test_a_window_of_everything_is_exact_attention(window: int, kv_heads: int, null: bool) -> None:
    inputs = draw(300, kv_heads=kv_heads, dtype=torch.float32)
    extra = draw_null(inputs) if null else None

    def must_not_run(k_sem, v):
        raise AssertionError("the summarizer ran although no query reads a memory token")

    setup = Setup(block=32, window=window, chunk=64)
    out = long_sequence(inputs, setup, null=extra, summarizer=must_not_run)
    torch.testing.assert_close(out.double(), reference_attention(*inputs, null=extra), **TOL["float32"])


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("null", [False, True])
def test_each_token_counts_once(null: bool, carrier: str) -> None:
    """With queries of zero every token weighs the same, and a memory token as much as its block."""
    setup = Setup(block=6, window=11, chunk=15, null=null)
    inputs = draw(130)
    inputs = inputs._replace(q_sem=torch.zeros_like(inputs.q_sem), q_geo=torch.zeros_like(inputs.q_geo))
    extra = draw_null(inputs) if null else None
    seen = torch.arange(1, 131, dtype=torch.float64)[:, None]
    total = inputs.v.cumsum(2)
    if extra is not None:
        total, seen = total + extra.v[:, None], seen + 1
    expected = (total / seen).repeat_interleave(2, dim=1)
    out = long_sequence(inputs, setup, null=extra, carrier=carrier)
    torch.testing.assert_close(out, expected, **TOL["float64"])


@pytest.mark.parametrize("carrier", CARRIERS)
def test_bfloat16_differs_by_its_rounding_alone(carrier: str) -> None:
    setup = Setup(block=64, window=64, chunk=64, null=True)
    inputs = Inputs(*(x.bfloat16() for x in draw(400, dtype=torch.float32)))
    null = draw_null(inputs)
    out = long_sequence(inputs, setup, null=null, carrier=carrier)
    assert out.dtype == torch.bfloat16
    expected = long_sequence_oracle(inputs, setup, null=null)
    torch.testing.assert_close(out.double(), expected, **TOL["bfloat16"])


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("null", [False, True])
def test_no_token_and_one_token(length: int, null: bool) -> None:
    inputs = Inputs(*(x.requires_grad_() for x in draw(length)))
    extra = draw_null(inputs) if null else None
    out = long_sequence(inputs, Setup(block=2, window=0, chunk=1), null=extra)
    assert out.shape == (2, 4, length, 5)
    torch.testing.assert_close(out, reference_attention(*inputs, null=extra), **TOL["float64"])
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs)
