"""The gates: values, where they start, that row t reads row t alone, and what is refused."""

from __future__ import annotations

import pytest
import torch

from dba_core.contracts import AttentionShape, GateRequest
from dba_core.errors import ConfigError, UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice

pytestmark = pytest.mark.torch

SHAPE = AttentionShape(d_model=7, n_heads=3, n_kv_heads=3, sem_head_dim=2, geo_head_dim=4, v_head_dim=5)
NO_SEMANTICS = AttentionShape(
    d_model=7, n_heads=3, n_kv_heads=1, sem_head_dim=0, geo_head_dim=4, v_head_dim=5
)


def build(name: str, shape: AttentionShape = SHAPE, **options: object):
    choice = PluginChoice(name, options=options)
    return Registry.default().select("gate", choice, GateRequest(shape=shape)).build()


@pytest.mark.parametrize("name", ["causal", "static"])
def test_neutral_at_first_or_at_the_value_asked_for(name: str) -> None:
    x = torch.randn(2, 5, 7)
    assert torch.equal(build(name)(x), torch.full((2, 3, 5, 1), 0.5))
    torch.testing.assert_close(build(name, init=0.9)(x), torch.full((2, 3, 5, 1), 0.9))


def test_causal_is_a_sigmoid_of_the_tokens_own_state() -> None:
    gate = build("causal")
    assert {n: tuple(p.shape) for n, p in gate.named_parameters()} == {
        "decoupled_gate_logit": (3,),
        "decoupled_gate_proj.weight": (3, 7),
    }
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_()
    x = torch.randn(2, 5, 7)
    g = gate(x)
    for b in range(2):
        for t in range(5):
            for h in range(3):
                logit = gate.decoupled_gate_logit[h] + x[b, t] @ gate.decoupled_gate_proj.weight[h]
                assert g[b, h, t, 0].item() == pytest.approx(1 / (1 + torch.exp(-logit).item()), abs=1e-6)


@pytest.mark.parametrize("name", ["causal", "static"])
def test_row_t_depends_on_row_t_alone(name: str) -> None:
    gate = build(name)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_()
    x = torch.randn(1, 6, 7, requires_grad=True)
    before = gate(x)
    other = x.detach().clone()
    other[0, 3] += 1
    changed = (gate(other) != before).any(dim=1).flatten()
    assert changed.tolist() == [name == "causal" and t == 3 for t in range(6)]
    if name == "static":
        assert not torch.autograd.grad(before[0, :, 2].sum(), x, allow_unused=True)[0]
        return
    (gradient,) = torch.autograd.grad(before[0, :, 2].sum(), x)
    assert gradient[0].abs().amax(dim=-1).ne(0).tolist() == [t == 2 for t in range(6)]


@pytest.mark.parametrize("name", ["causal", "static"])
def test_gradients_reach_every_parameter_from_the_first_step(name: str) -> None:
    gate = build(name)
    gate(torch.randn(2, 5, 7)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gate.parameters())


@pytest.mark.parametrize("q_len", [0, 1, 63])
def test_odd_sizes_and_half_precision(q_len: int) -> None:
    for name in ("causal", "static"):
        assert build(name)(torch.randn(2, q_len, 7)).shape == (2, 3, q_len, 1)
        assert build(name).bfloat16()(torch.randn(2, q_len, 7).bfloat16()).dtype == torch.bfloat16


def test_none_builds_nothing_and_takes_no_options() -> None:
    assert build("none") is None
    assert build("none", NO_SEMANTICS) is None
    with pytest.raises(ConfigError, match="init"):
        build("none", init=0.5)


@pytest.mark.parametrize("name", ["causal", "static"])
def test_a_layout_without_semantic_path_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="no semantic path") as caught:
        build(name, NO_SEMANTICS)
    (reason,) = caught.value.reasons
    assert reason.subject == "sem_head_dim"
    assert "gate=none" in reason.action


@pytest.mark.parametrize("init", [0.0, 1.0, -0.1])
def test_init_is_inside_the_unit_interval(init: float) -> None:
    with pytest.raises(ConfigError, match="allowed: 0 < init < 1"):
        build("causal", init=init)
