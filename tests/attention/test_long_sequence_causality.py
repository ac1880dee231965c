"""The long-sequence path: the future changes nothing, by one bit; every visible token changes something."""

from __future__ import annotations

import pytest
import torch
from long_sequence_oracle import Inputs, Setup, draw, draw_null, mean_of_blocks

from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.projections import Heads

pytestmark = pytest.mark.torch

T = 150
SETUPS = {
    "divides": Setup(block=8, window=32, chunk=16),
    "nothing divides": Setup(block=7, window=20, chunk=13, null=True),
    "no window": Setup(block=10, window=0, chunk=25, null=True),
    "grouped": Setup(block=16, window=33, chunk=32, kv_heads=1),
}


def attend(inputs: Inputs, setup: Setup, null):
    return long_sequence_attention(
        Heads(*inputs),
        plan=setup.plan(inputs.v.shape[2]),
        summarizer=mean_of_blocks,
        null=null,
    )


@pytest.mark.parametrize("name", SETUPS)
def test_the_future_changes_nothing(name: str) -> None:
    setup = SETUPS[name]
    inputs = draw(T, kv_heads=setup.kv_heads, batch=1, dtype=torch.float32)
    null = draw_null(inputs) if setup.null else None
    before = attend(inputs, setup, null)
    for first in range(1, T, 7):
        changed = Inputs(*(x.clone() for x in inputs))
        for x in changed:
            x[:, :, first:] = 1e3 * torch.randn_like(x[:, :, first:])
        after = attend(changed, setup, null)
        assert torch.equal(after[:, :, :first], before[:, :, :first]), f"tokens from {first} on reached back"
        assert not torch.equal(after[:, :, first], before[:, :, first])


@pytest.mark.parametrize("name", SETUPS)
def test_gradients_reach_the_visible_tokens_and_no_others(name: str) -> None:
    """Values and semantic keys of every earlier token, geometric keys of the local ones only."""
    setup = SETUPS[name]
    inputs = Inputs(*(x.requires_grad_() for x in draw(T, kv_heads=setup.kv_heads, batch=1)))
    null = draw_null(inputs) if setup.null else None
    index = torch.arange(T)
    for t in (0, 1, setup.chunk, 60, 97, T - 1):
        grads = torch.autograd.grad(attend(inputs, setup, null)[:, :, t].sin().sum(), inputs)
        q_sem, q_geo, k_sem, k_geo, v = (
            g.abs().amin(dim=(0, 1, 3)) > 0 for g in grads
        )  # every head, channel
        assert q_sem.tolist() == q_geo.tolist() == (index == t).tolist() or t == 0
        reach = index <= t
        assert v.tolist() == reach.tolist()
        if t > 0:  # query 0 sees one key only (or the null key beside it), whatever its score
            start = max(0, t // setup.chunk * setup.chunk - setup.window) // setup.block * setup.block
            assert k_sem.tolist() == reach.tolist()
            assert k_geo.tolist() == (reach & (index >= start)).tolist()


def test_the_null_token_reaches_every_query() -> None:
    setup = SETUPS["nothing divides"]
    inputs = draw(T, batch=1)
    null = draw_null(inputs)
    before = attend(inputs, setup, null)
    null.v[:] += 1.0
    assert (attend(inputs, setup, null) != before).all()


def test_one_sequence_of_a_batch_does_not_reach_another() -> None:
    setup = SETUPS["nothing divides"]
    inputs = draw(T, batch=3, dtype=torch.float32)
    null = draw_null(inputs)
    whole = attend(inputs, setup, null)
    for b in range(3):
        alone = attend(Inputs(*(x[b : b + 1] for x in inputs)), setup, null)
        torch.testing.assert_close(alone, whole[b : b + 1], rtol=0, atol=1e-6)
