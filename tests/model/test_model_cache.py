"""The whole model with a KV cache: equal to the training forward pass, and all or nothing over the layers."""

from __future__ import annotations

import attrs
import pytest
import torch

from dba_core.attention.module import DecoupledAttention
from dba_core.cache.kv_cache import KVCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import CacheError
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch


EXACT = "ksem=fp32,kgeo=fp32,v=fp32"
QUANTIZED = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4"
CONFIG = ModelConfig(
    vocab_size=31, context=32, n_layers=3, d_model=32, attention=AttentionConfig(n_heads=4, n_kv_heads=2)
)
STANDARD = attrs.evolve(CONFIG, attention=AttentionConfig(mode="standard", n_heads=4))


def randomized(config: ModelConfig = CONFIG) -> LanguageModel:
    choices = PluginChoices(
        gate=PluginChoice("causal" if config is CONFIG else "none"), null_token=PluginChoice("learned")
    )
    model = LanguageModel(config, plugins=choices, seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def some_tokens(batch: int = 2, length: int = 13) -> torch.Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(5))


def fed(model: LanguageModel, cache: KVCache, tokens: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    return torch.cat([model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("chunks", [[13], [1] * 13, [1, 5, 7], [12, 1]])
@pytest.mark.parametrize("config", [CONFIG, STANDARD], ids=["decoupled", "standard"])
def test_prefill_and_decode_equal_the_training_forward_pass(config: ModelConfig, chunks: list[int]) -> None:
    model, tokens = randomized(config), some_tokens()
    cache = model.new_cache(batch=2, capacity=13, policy=EXACT)
    with torch.no_grad():
        torch.testing.assert_close(fed(model, cache, tokens, chunks), model(tokens), rtol=1e-5, atol=1e-5)
    assert cache.lengths == (13, 13)


def test_any_chunking_of_a_quantized_cache_gives_the_same_logits() -> None:
    model, tokens = randomized(), some_tokens()
    whole = fed(model, model.new_cache(batch=2, capacity=13, policy=QUANTIZED), tokens, [13])
    for chunks in ([1] * 13, [3, 10], [9, 2, 2]):
        parts = fed(model, model.new_cache(batch=2, capacity=13, policy=QUANTIZED), tokens, chunks)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (whole - model(tokens)).abs().max() > 1e-3


def test_ragged_rows_equal_each_row_alone() -> None:
    model, tokens = randomized(), some_tokens(length=6)
    cache = model.new_cache(batch=2, capacity=13, policy=EXACT)
    logits = model(tokens, cache=cache, counts=[6, 2])
    after = model(torch.tensor([[3], [4]]), cache=cache)
    assert cache.lengths == (7, 3)
    with torch.no_grad():
        for row, count, token in ((0, 6, 3), (1, 2, 4)):
            alone = model(torch.cat([tokens[row, :count], torch.tensor([token])])[None])
            torch.testing.assert_close(logits[row, :count], alone[0, :count], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(after[row], alone[0, count:], rtol=1e-5, atol=1e-5)


def test_a_cached_pass_keeps_no_graph() -> None:
    model = randomized()
    cache = model.new_cache(batch=2, capacity=13, policy=EXACT)
    assert not model(some_tokens(), cache=cache).requires_grad
    assert model(some_tokens()).requires_grad


class LayerError(RuntimeError):
    """Not one of ours: whatever goes wrong in a layer must be undone."""


@pytest.mark.parametrize("policy", [EXACT, QUANTIZED])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_fails_leaves_no_layer_ahead(
    layer: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = randomized(), some_tokens(length=8)
    cache = model.new_cache(batch=2, capacity=13, policy=policy)
    twin = model.new_cache(batch=2, capacity=13, policy=policy)
    model(tokens, cache=cache, counts=[8, 5])
    model(tokens, cache=twin, counts=[8, 5])
    broken, forward = model.attentions[layer], DecoupledAttention.forward

    def failing(self: DecoupledAttention, x: torch.Tensor, **given: object) -> torch.Tensor:
        out = forward(self, x, **given)
        if self is broken:
            raise LayerError
        return out

    with monkeypatch.context() as patched:
        patched.setattr(DecoupledAttention, "forward", failing)
        with pytest.raises(LayerError):
            model(tokens[:, :3], cache=cache)
    assert [each.lengths for each in cache.layers] == [(8, 5)] * 3
    assert torch.equal(model(tokens[:, :2], cache=cache), model(tokens[:, :2], cache=twin))


def test_an_overflow_changes_nothing() -> None:
    model = randomized()
    cache = model.new_cache(batch=2, capacity=5, policy=QUANTIZED)
    model(some_tokens(length=4), cache=cache)
    with pytest.raises(CacheError, match=r"4.*5|5.*4"):
        model(some_tokens(length=2), cache=cache)
    assert cache.lengths == (4, 4)


def test_a_layer_that_cannot_be_rolled_back_is_named_at_the_next_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized()
    cache = model.new_cache(batch=2, capacity=20, policy=QUANTIZED, rollback=0)
    model(some_tokens(length=10), cache=cache)
    forward = DecoupledAttention.forward

    def failing(self: DecoupledAttention, x: torch.Tensor, **given: object) -> torch.Tensor:
        if self is model.attentions[1]:
            raise LayerError
        return forward(self, x, **given)

    with monkeypatch.context() as patched:
        patched.setattr(DecoupledAttention, "forward", failing)
        with pytest.raises(LayerError):
            model(some_tokens(length=3), cache=cache)
    with pytest.raises(CacheError, match=r"10.*13|13.*10"):
        model(some_tokens(length=1), cache=cache)
    cache.reset()
    assert model(some_tokens(length=1), cache=cache).shape == (2, 1, 31)


def test_a_cache_with_other_layers_is_refused() -> None:
    model = randomized()
    cache = model.new_cache(batch=2, capacity=5, policy=EXACT)
    with pytest.raises(CacheError, match="2 layers and the model 3"):
        model(some_tokens(length=1), cache=KVCache(cache.layers[:2]))
    assert cache.lengths == (0, 0)
