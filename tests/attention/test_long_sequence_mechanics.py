"""How the long-sequence path runs: fused calls, linear memory, dropout, autocast, side effects."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from long_sequence_oracle import (
    Inputs,
    Setup,
    draw,
    draw_null,
    long_sequence_oracle,
    mean_of_blocks,
)
from tolerances import TOL
from torch.utils._python_dispatch import TorchDispatchMode

from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.long_sequence.plan import LongSequencePlan
from dba_core.attention.projections import Heads, columns

pytestmark = pytest.mark.torch

SETUP = Setup(block=8, window=32, chunk=16)


def attend(inputs: Inputs, *, setup: Setup = SETUP, null=None, summarizer=mean_of_blocks, **options):
    return long_sequence_attention(
        Heads(*inputs),
        plan=setup.plan(inputs.v.shape[2]),
        summarizer=summarizer,
        null=null,
        **options,
    )


def with_grad(inputs: Inputs) -> Inputs:
    return Inputs(*(x.requires_grad_() for x in inputs))


class Attention(TorchDispatchMode):
    """Notes the kernels that scaled_dot_product_attention runs, and their masks."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.masks: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "attention" in name:
            self.kernels.append(name)
            mask = (kwargs or {}).get("attn_mask")
            if mask is not None:
                self.masks.append(mask)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("widths", [(3, 4, 5), (4, 4, 8), (2, 4, 12)])
def test_one_fused_call_per_chunk_forward_and_backward(widths: tuple[int, int, int], null: bool) -> None:
    inputs = with_grad(draw(200, widths=widths, dtype=torch.float32))
    extra = draw_null(inputs) if null else None
    chunks = len(LongSequencePlan(length=200, mem_block=8, local_window=32, q_chunk=16).chunks)
    with Attention() as ran:
        attend(inputs, null=extra).sum().backward()
    forward = "_scaled_dot_product_flash_attention_for_cpu"
    assert ran.kernels == [forward] * chunks + [f"{forward}_backward"] * chunks


def test_memory_grows_linearly() -> None:
    """The peak of what a forward and backward allocate, per token."""

    def peak(length: int) -> float:
        inputs = with_grad(draw(length, batch=1, n_heads=2, widths=(4, 4, 8), dtype=torch.float32))
        attend(inputs).sum().backward()  # the first call's own buffers
        with torch.profiler.profile(profile_memory=True) as profiler:
            attend(inputs).sum().backward()
        held = most = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most / length

    assert 0 < peak(4096) < 1.15 * peak(1024)


def test_inputs_are_left_as_they_were() -> None:
    inputs = with_grad(draw(200, widths=(4, 4, 8)))  # no padding: v itself could serve as the buffer
    null = draw_null(inputs)
    before = [x.detach().clone() for x in (*inputs, null.k_sem, null.k_geo, null.v)]
    for use in (None, null):
        attend(inputs, null=use).sum().backward()
    for x, was in zip((*inputs, null.k_sem, null.k_geo, null.v), before, strict=True):
        assert torch.equal(x.detach(), was)


def test_the_same_bits_without_gradients() -> None:
    inputs = with_grad(draw(200, dtype=torch.float32))
    with torch.no_grad():
        quiet = attend(inputs)
    assert not quiet.requires_grad
    assert torch.equal(attend(inputs).detach(), quiet)


def test_gradients_of_some_inputs_only() -> None:
    inputs = draw(120)
    every = torch.autograd.grad(attend(with_grad(inputs)).sin().sum(), inputs)
    for i in range(5):
        part = Inputs(*(x.detach().requires_grad_(i == j) for j, x in enumerate(inputs)))
        (alone,) = torch.autograd.grad(attend(part).sin().sum(), [part[i]])
        torch.testing.assert_close(alone, every[i], **TOL["float64"])


def test_a_second_backward_is_refused_with_what_to_do() -> None:
    inputs = with_grad(draw(120))
    out = attend(inputs).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run forward again"):
        out.backward()


def test_backward_after_another_forward() -> None:
    """Two calls share no buffer."""
    inputs = with_grad(draw(120))
    alone = torch.autograd.grad(attend(inputs).sin().sum(), inputs)
    first, second = attend(inputs), attend(Inputs(*(2 * x for x in inputs)))
    second.sum().backward()
    for x, y in zip(torch.autograd.grad(first.sin().sum(), inputs), alone, strict=True):
        assert torch.equal(x, y)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    inputs = draw(96, batch=1, dtype=torch.float32)
    assert torch.equal(attend(inputs, dropout_p=0.0), attend(inputs))
    draws = torch.stack([attend(inputs, dropout_p=0.3) for _ in range(200)])
    error = (draws.mean(0) - attend(inputs)).abs() / (draws.std(0) / 200**0.5)
    assert float(error.mean()) == pytest.approx(0.8, abs=0.15)  # mean |N(0,1)|


def test_dropout_backward_uses_the_weights_of_forward() -> None:
    """For given weights the output is linear in the values: sum(grad_v * v) = sum(grad_out * out)."""
    inputs = with_grad(draw(96, batch=1))
    out = attend(inputs, dropout_p=0.3)
    grad = torch.randn_like(out)
    (grad_v,) = torch.autograd.grad(out, [inputs.v], grad)
    torch.testing.assert_close((grad_v * inputs.v).sum(), (grad * out).sum(), **TOL["float64"])


@pytest.mark.parametrize("block", [8, 48, 64])
def test_half_precision_does_not_round_the_mass(block: int) -> None:
    """log(64) is no bfloat16 number; rounded, a memory token would stand for 63.8 tokens."""
    expected = math.log(block)
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert columns(expected, like).dtype == torch.bfloat16
    assert float(columns(expected, like).double().sum()) == pytest.approx(expected, abs=1e-4)
    inputs = draw(300, dtype=torch.float32)
    setup = SETUP._replace(block=block)
    with Attention() as ran:
        attend(Inputs(*(x.bfloat16() for x in inputs)), setup=setup)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attend(inputs, setup=setup)
    assert ran.masks
    assert all(float(mask[0, 0]) == pytest.approx(expected, abs=1e-6) for mask in ran.masks)


def test_autocast_computes_in_its_dtype() -> None:
    inputs = with_grad(draw(200, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), long_sequence_oracle(inputs, SETUP), **TOL["bfloat16"])
    out.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in inputs)


def test_summaries_are_made_only_of_the_blocks_that_are_read() -> None:
    asked = []

    def noting(k_sem, v):
        asked.append((tuple(k_sem.shape), tuple(v.shape)))
        return k_sem.mean(3), v.mean(3)

    attend(draw(100), summarizer=noting)  # last chunk starts at 96, and 96 - 32 = 64 = 8 blocks
    assert asked == [((2, 2, 8, 8, 3), (2, 2, 8, 8, 5))]


def test_layout_of_the_output_is_tokens_first() -> None:
    """So that [B, H, T, Dv] -> [B, T, H*Dv] is a view."""
    out = attend(draw(100, widths=(4, 4, 8)))
    assert out.transpose(1, 2).is_contiguous()


def test_the_last_chunk_is_one_masked_call_over_its_keys() -> None:
    inputs = draw(112, kv_heads=4, dtype=torch.float32)
    q, k = (torch.cat(x, -1) for x in ((inputs.q_sem, inputs.q_geo), (inputs.k_sem, inputs.k_geo)))
    k_mem = inputs.k_sem[:, :, :64].unflatten(2, (8, 8)).mean(3)
    keys = torch.cat([F.pad(k_mem, (0, 4)), k[:, :, 64:]], 2)
    values = torch.cat([inputs.v[:, :, :64].unflatten(2, (8, 8)).mean(3), inputs.v[:, :, 64:]], 2)
    bias = torch.zeros(16, 56)
    bias[:, :8] = torch.tensor(8.0).log()
    bias[:, 40:] += torch.full((16, 16), -torch.inf).triu(1)
    expected = F.scaled_dot_product_attention(q[:, :, 96:], keys, values, attn_mask=bias, scale=1.0)
    torch.testing.assert_close(attend(inputs)[:, :, 96:], expected, **TOL["float32"])
