"""AdamW: who is decayed, and one step against the equations in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_run import build, tiny_config
from torch import nn

from dba_core.config.run import TrainingConfig
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_core.training.step import build_optimizer

pytestmark = pytest.mark.torch


def test_matrices_are_decayed_and_nothing_else() -> None:
    config = tiny_config()
    plugins = PluginChoices(gate=PluginChoice("causal"), null_token=PluginChoice("learned"))
    model = LanguageModel(config.model, plugins=plugins)
    decayed, plain = build_optimizer(model, config.training).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (config.training.weight_decay, 0.0)
    kept = {names[id(p)].removeprefix("blocks.0.") for p in plain["params"] if "blocks.1" not in names[id(p)]}
    assert {"ln1.weight", "ln2.weight", "ln_f.weight", "attn.gate.decoupled_gate_logit"} <= kept
    assert {f"attn.null_token.{name}_null" for name in ("k_sem", "k_geo", "v")} <= kept
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert not [names[id(p)] for p in decayed["params"] if "null_token" in names[id(p)]]
    assert "tok_emb.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_the_fused_implementation_is_used_on_the_cpu() -> None:
    config = tiny_config()
    assert build_optimizer(build(config), config.training).defaults["fused"] is True


def test_three_steps_are_those_of_the_equations() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.full((2, 3), 2.0))
            self.vector = nn.Parameter(torch.full((3,), 2.0))

    config = TrainingConfig(lr=0.1, beta1=0.8, beta2=0.9, weight_decay=0.5)
    model = Two()
    optimizer = build_optimizer(model, config)
    expected = {"matrix": 2.0, "vector": 2.0}
    moments = dict.fromkeys(expected, (0.0, 0.0))
    for step, gradient in enumerate((1.0, -2.0, 0.5), start=1):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        for name, weight in expected.items():
            m, v = moments[name]
            m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
            moments[name] = m, v
            decay = 0.1 * 0.5 * weight if name == "matrix" else 0.0
            update = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)) ** 0.5 + 1e-8)
            expected[name] = weight - decay - 0.1 * update
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter, torch.full_like(parameter, expected[name]), rtol=1e-5, atol=1e-6
        )
