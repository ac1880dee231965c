"""Plugins per layer in one model: what each layer has, in training, prefill, decode and weights."""

from __future__ import annotations

import attrs
import pytest
import torch

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.errors import ConfigError, UnsupportedError
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch


LONG = LongSequenceConfig(enabled=True, threshold=8, mem_block=4, local_window=2, q_chunk=2)
CONFIG = ModelConfig(
    vocab_size=31,
    context=32,
    n_layers=4,
    d_model=32,
    attention=AttentionConfig(n_heads=4, n_kv_heads=2),
    train_long_seq=LONG,
)
POLICY = "ksem=fp32,kgeo=fp32,v=fp32"
MIXED = PluginChoices(
    gate=PluginChoice("causal"),
    null_token=PluginChoice("none"),
    summarizer=PluginChoice("linear"),
    layers={
        "0": {
            "gate": PluginChoice("none"),
            "decode_backend": PluginChoice("streaming", options={"block": 4}),
        },
        "1-2": {"summarizer": PluginChoice("conv"), "null_token": PluginChoice("learned")},
        "3": {"gate": PluginChoice("static"), "summarizer": PluginChoice("mean")},
    },
)


def made(plugins: PluginChoices = MIXED, config: ModelConfig = CONFIG) -> LanguageModel:
    """Weights large enough that every part of the model shows in the logits."""
    model = LanguageModel(config, plugins=plugins, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(batch: int = 2, length: int = 13) -> torch.Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(5))


def chosen(model: LanguageModel, kind: str) -> list[str]:
    return [attention.selections[kind].name for attention in model.attentions]  # type: ignore[index]


def test_every_layer_has_what_it_chose() -> None:
    model = made()
    assert chosen(model, "gate") == ["none", "causal", "causal", "static"]
    assert chosen(model, "null_token") == ["none", "learned", "learned", "none"]
    assert chosen(model, "summarizer") == ["linear", "conv", "conv", "mean"]
    names = set(model.state_dict())
    has = [
        {part for part in ("gate", "null_token") if any(f"blocks.{layer}.attn.{part}." in n for n in names)}
        for layer in range(4)
    ]
    assert has == [set(), {"gate", "null_token"}, {"gate", "null_token"}, {"gate"}]


def test_the_layers_without_a_choice_have_the_weights_that_they_would_have_alone() -> None:
    mixed = LanguageModel(CONFIG, plugins=MIXED, seed=3).state_dict()
    plain = LanguageModel(CONFIG, plugins=attrs.evolve(MIXED, layers={}), seed=3).state_dict()
    common = mixed.keys() & plain.keys()
    assert any(".summarizer." in name for name in common)
    for name in common:
        if not (".summarizer." in name and name.startswith(("blocks.1", "blocks.2"))):
            assert torch.equal(mixed[name], plain[name]), name


@pytest.mark.parametrize("chunks", [[13], [1] * 13, [4, 1, 8]])
def test_prefill_and_decode_equal_the_exact_forward_pass(chunks: list[int]) -> None:
    model, x = made().eval(), tokens()
    cache = model.new_cache(batch=2, capacity=13, policy=POLICY)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in x.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(x), rtol=1e-5, atol=1e-5)


def test_every_layer_decodes_with_its_own_backend() -> None:
    model = made()
    cache = model.new_cache(batch=1, capacity=8, policy=POLICY)
    pairs = zip(model.attentions, cache.layers, strict=True)
    options = [attention.decode_selection(layer).options for attention, layer in pairs]
    assert options[0].block == 4
    assert {type(each).__name__ for each in options[1:]} == {"NoOptions"}
    assert model.decode_backends(cache) == "streaming (layer 0), cpu (layers 1-3)"


def test_training_takes_each_layers_own_summarizer_and_reaches_it() -> None:
    model = made().train()
    model.loss(tokens(), tokens()).backward()
    layers = {name.split(".")[1] for name, p in model.named_parameters() if ".summarizer." in name}
    assert layers == {"0", "1", "2"}, "mean has no weights"
    for name, parameter in model.named_parameters():
        if ".summarizer." in name or ".gate." in name or ".null_token." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_a_layers_choice_changes_the_loss_that_the_others_see() -> None:
    """Each of the three changes is seen: the layer uses what it chose, not what the others have."""
    base = attrs.evolve(MIXED, layers={})
    losses = []
    for kind, name in (("gate", "none"), ("null_token", "learned"), ("summarizer", "mean")):
        layers = {"2": {kind: PluginChoice(name)}}
        for plugins in (base, attrs.evolve(base, layers=layers)):
            model = made(plugins).train()
            common = made(base).state_dict()
            model.load_state_dict({k: v for k, v in common.items() if k in model.state_dict()}, strict=False)
            losses.append(float(model.loss(tokens(), tokens()).detach()))
    assert losses[0] == losses[2] == losses[4]
    assert len({losses[0], losses[1], losses[3], losses[5]}) == 4


def test_at_evaluation_the_path_names_the_summarizer_of_every_layer() -> None:
    model = made().eval()
    with model.long_sequence(LONG) as used:
        assert used.summarizer == "linear (layer 0), conv (layers 1-2), mean (layer 3)"
        approximate = model(tokens())
    assert not torch.equal(approximate, model(tokens()))
    with (
        pytest.raises(UnsupportedError, match="summarizer 'conv'"),
        model.long_sequence(LONG, summarizer="conv"),
    ):
        pass


def test_weights_round_trip_and_do_not_fit_other_layers() -> None:
    model, again = made(), LanguageModel(CONFIG, plugins=MIXED, seed=9)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens()), model.eval()(tokens()))
    other = LanguageModel(CONFIG, plugins=attrs.evolve(MIXED, layers={}))
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn\.gate"):
        other.load_state_dict(model.state_dict())


def test_a_layer_that_is_not_there_is_refused() -> None:
    plugins = PluginChoices(layers={"3-4": {"gate": PluginChoice("static")}})
    with pytest.raises(ConfigError) as caught:
        LanguageModel(CONFIG, plugins=plugins)
    assert str(caught.value) == ("plugins.layers.3-4: layer 4 is not there; model.n_layers=4 allows 0 to 3")


def test_the_summarizer_of_the_configuration_is_that_of_the_other_layers() -> None:
    data = {
        "model": {**CONFIG.to_dict(), "train_long_seq": {**LONG.to_dict(), "mem_summarizer": "mean"}},
        "plugins": {"layers": {"1": {"summarizer": "conv"}}},
    }
    config = RunConfig.from_dict(data)
    model = LanguageModel(config.model, plugins=config.plugins)
    assert chosen(model, "summarizer") == ["mean", "conv", "mean", "mean"]
