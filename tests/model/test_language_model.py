"""The language model against an oracle written from the equations, its causality, its loss and its errors."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from model_oracle import oracle_logits

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import ConfigError, DataError
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch


LLAMA = ModelConfig(
    vocab_size=37,
    context=16,
    n_layers=2,
    d_model=24,
    d_ff=40,
    norm_eps=1e-6,
    tie_embeddings=False,
    attention=AttentionConfig(mode="gqa", n_heads=6, n_kv_heads=2, rope_theta=500000.0),
)
VARIANTS = {
    "llama": LLAMA,
    "tied": attrs.evolve(LLAMA, tie_embeddings=True),
    "narrow embedding": attrs.evolve(LLAMA, embed_dim=10),
    "narrow tied embedding": attrs.evolve(LLAMA, embed_dim=10, tie_embeddings=True),
    "gelu, layernorm, bias": attrs.evolve(LLAMA, mlp="gelu", norm="layernorm", bias=True),
    "bottleneck": attrs.evolve(
        LLAMA, attention=AttentionConfig(mode="bottleneck", n_heads=3, geo_head_dim=4, v_head_dim=5)
    ),
    "one layer, one head": attrs.evolve(
        LLAMA, n_layers=1, attention=AttentionConfig(mode="standard", n_heads=1)
    ),
}
DECOUPLED = attrs.evolve(LLAMA, attention=AttentionConfig(n_heads=6, n_kv_heads=2))


def randomized(config: ModelConfig, *, plugins: PluginChoices | None = None) -> LanguageModel:
    """Weights large enough that every part of the model shows in the logits."""
    model = LanguageModel(config, plugins=plugins, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def some_tokens(batch: int, length: int, *, seed: int = 5) -> torch.Tensor:
    return torch.randint(37, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_equations(name: str, length: int) -> None:
    model = randomized(VARIANTS[name], plugins=PluginChoices(null_token=PluginChoice("none")))
    tokens = some_tokens(2, length)
    expected = oracle_logits(model.config, model.state_dict(), tokens)
    torch.testing.assert_close(model.double()(tokens), expected, rtol=1e-9, atol=1e-9)


def test_parameter_names_are_the_ones_that_checkpoints_have() -> None:
    names = set(LanguageModel(attrs.evolve(DECOUPLED, embed_dim=10)).state_dict())
    at = "blocks.1"
    expected = {
        f"{at}.attn.{name}.weight" for name in ("q_sem", "k_sem", "q_geo", "k_geo", "v_proj", "out_proj")
    }
    expected |= {f"{at}.ff.{name}.weight" for name in ("w_gate", "w_up", "w_down")}
    expected |= {f"{at}.{name}.weight" for name in ("ln1", "ln2")}
    expected |= {f"{at}.attn.gate.decoupled_gate_logit", f"{at}.attn.gate.decoupled_gate_proj.weight"}
    expected |= {f"{name}.weight" for name in ("tok_emb", "emb_in", "emb_out", "ln_f", "lm_head")}
    assert expected <= names
    assert "lm_head.weight" not in LanguageModel(VARIANTS["tied"]).state_dict()


def test_loss_is_the_mean_negative_log_likelihood() -> None:
    model, tokens, targets = randomized(LLAMA), some_tokens(3, 8), some_tokens(3, 8, seed=6)
    logits = model(tokens).double()
    logs = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = -sum(logs[b, t, targets[b, t]] for b in range(3) for t in range(8)) / 24
    loss = model.loss(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_untrained_model_knows_nothing() -> None:
    model, tokens = LanguageModel(LLAMA, seed=1), some_tokens(8, 16)
    assert model.loss(tokens, some_tokens(8, 16, seed=9)).item() == pytest.approx(math.log(37), abs=0.02)


@pytest.mark.parametrize("name", ["llama", "decoupled"])
def test_the_future_changes_nothing_and_the_past_something(name: str) -> None:
    model = randomized({**VARIANTS, "decoupled": DECOUPLED}[name]).eval()
    tokens = some_tokens(1, 9)
    with torch.no_grad():
        before = model(tokens)
        for t in range(9):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % 37
            after = model(changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert (after[:, t:] != before[:, t:]).any(dim=-1).all()


def test_every_parameter_gets_a_gradient() -> None:
    plugins = PluginChoices(gate=PluginChoice("causal"), null_token=PluginChoice("learned"))
    model = randomized(attrs.evolve(DECOUPLED, embed_dim=10), plugins=plugins)
    model.loss(some_tokens(2, 9), some_tokens(2, 9, seed=6)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in silent if "summarizer" not in name] == []


def test_the_loss_compiles_to_one_graph() -> None:
    plugins = PluginChoices(gate=PluginChoice("causal"), null_token=PluginChoice("learned"))
    model, tokens, targets = (
        randomized(DECOUPLED, plugins=plugins),
        some_tokens(2, 9),
        some_tokens(2, 9, seed=6),
    )
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, targets), model.loss(tokens, targets))


def test_dropout_acts_in_training_only() -> None:
    model, tokens = randomized(attrs.evolve(LLAMA, dropout=0.5)), some_tokens(1, 9)
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(model(tokens), model(tokens))


def test_a_tied_embedding_counts_once() -> None:
    tied, untied = LanguageModel(VARIANTS["tied"]), LanguageModel(LLAMA)
    assert untied.n_parameters - tied.n_parameters == 37 * 24
    attention = 24 * 24 + 2 * 24 * 8 + 24 * 24
    plugin = sum(p.numel() for n, p in tied.named_parameters() if "attn." in n) - 2 * attention
    assert tied.n_parameters == 37 * 24 + 2 * (attention + 3 * 24 * 40 + 2 * 24) + 24 + plugin


def test_the_config_is_resolved_and_the_choices_are_known() -> None:
    model = LanguageModel(DECOUPLED)
    assert model.config == DECOUPLED.resolved()
    assert model.config.attention.d_model == 24
    assert model.attentions[0].selections["gate"].name == "causal"
    assert model.device == torch.device("cpu")
    assert len(model.attentions) == 2


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        LanguageModel(attrs.evolve(LLAMA, vocab_size=None))


@pytest.mark.parametrize("token", [-1, 37, 2**40])
def test_a_token_out_of_the_vocabulary_is_named(token: int) -> None:
    model = LanguageModel(LLAMA)
    with pytest.raises(DataError, match=rf"token {token} .* 0 to 36"):
        model(torch.tensor([[1, token, 2]]))


@pytest.mark.parametrize("tokens", [[1, 2], [[1.0, 2.0]], [[[1]]]])
def test_tokens_of_another_form_are_refused(tokens: list[object]) -> None:
    with pytest.raises(DataError, match=r"give integers \[batch, tokens\]"):
        LanguageModel(LLAMA)(torch.tensor(tokens))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_any_integer_type_of_tokens_will_do(dtype: str) -> None:
    model, tokens = randomized(LLAMA), some_tokens(2, 5)
    assert torch.equal(model(tokens.to(getattr(torch, dtype))), model(tokens))
