"""The initial weights: their spread, that seed and name alone decide them, the neutral plugins."""

from __future__ import annotations

import pytest
import torch

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.model.language_model import LanguageModel
from dba_core.model.weights import is_plugin_parameter, seed_of
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch


CONFIG = ModelConfig(
    vocab_size=50,
    context=16,
    n_layers=3,
    d_model=96,
    attention=AttentionConfig(n_heads=4, learned_temperature=True),
)


def build(seed: int = 7, **plugins: str) -> LanguageModel:
    choices = PluginChoices(**{kind: PluginChoice(name) for kind, name in plugins.items()})
    return LanguageModel(CONFIG, plugins=choices, seed=seed)


def test_the_gate_is_exactly_neutral_inside_the_full_model() -> None:
    """Regression: the origin system's weight initialization overwrote it (gate from 0.03 to 0.95)."""
    model = build(gate="causal")
    x = 100 * torch.randn(2, 5, CONFIG.d_model, generator=torch.Generator().manual_seed(0))
    for attention in model.attentions:
        assert torch.equal(attention.gate(x), torch.full((2, 4, 5, 1), 0.5))
        assert not attention.gate.decoupled_gate_logit.any()
        assert not attention.gate.decoupled_gate_proj.weight.any()


def test_a_neutral_gate_and_no_gate_give_the_same_logits() -> None:
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        plain = build(gate="none", null_token="none")(tokens)
        for gate in ("causal", "static"):
            assert torch.equal(build(gate=gate, null_token="none")(tokens), plain)


def test_null_tokens_and_temperatures_start_at_zero() -> None:
    model = build(null_token="learned")
    for attention in model.attentions:
        assert not any(parameter.any() for parameter in attention.null_token.parameters())
        assert not attention.logit_scale.any()


@pytest.mark.parametrize("other", [{"gate": "static"}, {"gate": "none"}, {"null_token": "none"}])
def test_exchanging_a_plugin_changes_no_other_initial_value(other: dict[str, str]) -> None:
    chosen = {"gate": "causal", "null_token": "learned", **other}
    before, after = build(gate="causal", null_token="learned").state_dict(), build(**chosen).state_dict()
    shared = before.keys() & after.keys()
    assert {name for name in before if not is_plugin_parameter(name)} <= shared
    assert all(torch.equal(before[name], after[name]) for name in shared)


def test_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    first = build(seed=7).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = build(seed=7).state_dict(), build(seed=8).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    matrices = [name for name in first if first[name].dim() >= 2 and not is_plugin_parameter(name)]
    assert all(not torch.equal(first[name], other[name]) for name in matrices)
    distinct = {first[name].flatten()[:8].numpy().tobytes() for name in matrices}
    assert len(distinct) == len(matrices)


def test_more_layers_leave_the_first_ones_as_they_were_up_to_the_residual_scale() -> None:
    few = build().state_dict()
    many = LanguageModel(ModelConfig(**{**_fields(CONFIG), "n_layers": 5}), seed=7).state_dict()
    for name in few:
        if name.endswith(("out_proj.weight", "w_down.weight")):
            torch.testing.assert_close(few[name] * (3 / 5) ** 0.5, many[name])
        elif not is_plugin_parameter(name):
            assert torch.equal(few[name], many[name])


def test_spread_of_matrices_and_of_projections_into_the_residual_stream() -> None:
    for name, parameter in build().named_parameters():
        if is_plugin_parameter(name):
            continue
        if parameter.dim() < 2:
            assert torch.equal(parameter, torch.full_like(parameter, float("ln" in name)))
            continue
        expected = 0.02 if name == "tok_emb.weight" else 0.5 / parameter.shape[1] ** 0.5
        if name.endswith(("out_proj.weight", "w_down.weight")):
            expected /= 6**0.5  # three layers, two additions each
        assert parameter.std().item() == pytest.approx(expected, rel=0.1)
        assert abs(parameter.mean().item()) < 4 * expected / parameter.numel() ** 0.5


def test_seed_of_is_the_same_everywhere() -> None:
    assert seed_of(1337, "tok_emb.weight") == seed_of(1337, "tok_emb.weight")
    assert len({seed_of(seed, name) for seed in range(20) for name in ("a", "b", "1:a")}) == 60
    assert all(0 <= seed_of(seed, "x") < 2**63 for seed in range(50))


def _fields(config: ModelConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ("vocab_size", "context", "d_model", "attention")}
