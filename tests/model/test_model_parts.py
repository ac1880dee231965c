"""Norms, feed-forward parts and the block against their equations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.model.block import Block, FeedForward, build_norm

pytestmark = pytest.mark.torch


WIDTHS = [1, 7, 64]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def config(**changes: object) -> ResolvedModel:
    attention = AttentionConfig(mode="bottleneck", n_heads=1, geo_head_dim=2, v_head_dim=1)
    sizes = {"vocab_size": 5, "d_model": 8, "d_ff": 12, "attention": attention}
    return ModelConfig(**{**sizes, **changes}).resolved()


def randomized(module: nn.Module) -> nn.Module:
    """Every parameter away from the values that would hide a missing one."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=100 + number))
    return module


@pytest.mark.parametrize("width", WIDTHS)
def test_rmsnorm_is_its_equation(width: int) -> None:
    norm = randomized(build_norm(config(d_model=width, norm="rmsnorm", norm_eps=1e-3, bias=True)))
    x = random(3, 5, width)
    d = x.double()
    expected = d / (d.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.parametrize("bias", [False, True])
def test_layernorm_is_its_equation(bias: bool) -> None:
    norm = randomized(build_norm(config(d_model=7, norm="layernorm", norm_eps=1e-3, bias=bias)))
    d = random(3, 5, 7).double()
    centred = d - d.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    expected = expected + norm.bias.double() if bias else expected
    torch.testing.assert_close(norm(d.float()).double(), expected, rtol=1e-5, atol=1e-5)
    assert (norm.bias is not None) == bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_is_its_equation(width: int, bias: bool) -> None:
    mlp = randomized(FeedForward(config(d_model=width, d_ff=11, bias=bias))).double()
    x = random(2, 3, width).double()
    gate, up = x @ mlp.w_gate.weight.T, x @ mlp.w_up.weight.T
    if bias:
        gate, up = gate + mlp.w_gate.bias, up + mlp.w_up.bias
    expected = gate * torch.sigmoid(gate) * up @ mlp.w_down.weight.T
    expected = expected + mlp.w_down.bias if bias else expected
    torch.testing.assert_close(mlp(x), expected, rtol=1e-10, atol=1e-10)


def test_swiglu_has_a_gate_branch_of_its_own() -> None:
    """Regression: the origin system compared module instances and so never built the branch."""
    mlp = FeedForward(config())
    assert mlp.w_gate.weight is not mlp.w_up.weight
    mlp(random(2, 8)).sum().backward()
    gradients = [p.grad for p in (mlp.w_gate.weight, mlp.w_up.weight, mlp.w_down.weight)]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    assert not torch.equal(gradients[0], gradients[1])
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 8 * 12


def test_gelu_is_its_equation() -> None:
    mlp = randomized(FeedForward(config(mlp="gelu", d_model=7, d_ff=11, bias=True))).double()
    x = random(2, 3, 7).double()
    hidden = x @ mlp.w_up.weight.T + mlp.w_up.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), hidden @ mlp.w_down.weight.T + mlp.w_down.bias, rtol=1e-10, atol=1e-10)


class Doubling(nn.Module):
    """Stands for an attention: what the block does with its result is what is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, object]] = []

    def forward(self, x: torch.Tensor, *, cache: object = None, counts: object = None) -> torch.Tensor:
        self.seen.append((cache, counts))
        return 2 * x


def test_block_adds_both_branches_behind_their_norms() -> None:
    attention = Doubling()
    block = randomized(Block(config(), attention)).double()
    x = random(2, 3, 8).double()
    middle = x + 2 * block.ln1(x)
    torch.testing.assert_close(block(x, cache="c", counts=[1]), middle + block.ff(block.ln2(middle)))
    assert attention.seen == [("c", [1])]


def test_block_drops_both_branches_in_training_only() -> None:
    torch.manual_seed(0)
    block = Block(config(dropout=0.5), Doubling())
    x = torch.ones(1, 400, 8)
    assert torch.equal(block.eval()(x), block(x))
    block.ff.w_down.weight.data.zero_()
    added = block.train()(x) - x  # 2 * ln1(1) = 2, dropped or doubled
    assert set(added.unique().round(decimals=3).tolist()) == {0.0, 4.0}
