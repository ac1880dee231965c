"""A whole model gives the same tokens with every decode backend, and its cache is as large as it says."""

from __future__ import annotations

import pytest

from dba_core.cache.bytes import bytes_per_token, residual_bytes
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import GenerationConfig
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

POLICIES = (
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32",
    "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    "ksem=nf4@32,kgeo=fp16,v=bf16,resid=7",
    "ksem=fp32,kgeo=fp32,v=fp32",
)


def model_with(backend: str, null_token: str) -> LanguageModel:
    plugins = PluginChoices(null_token=PluginChoice(null_token), decode_backend=PluginChoice(backend))
    return LanguageModel(ModelConfig(vocab_size=256), plugins=plugins, seed=3).eval()


@pytest.mark.parametrize("null_token", ["none", "learned"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_tokens_are_the_same_with_each_backend(policy: str, null_token: str) -> None:
    """The default model, prompts of different lengths, far past the residual window."""
    prompts = [list(b"The quick brown fox"), list(b"ab"), list(b"Numbers, and then words: " * 3)]
    config = GenerationConfig(max_new_tokens=48, temperature=0.0)
    said = [
        generate(model_with(backend, null_token), prompts, config, kv_policy=policy)
        for backend in ("streaming", "cpu")
    ]
    assert said[0] == said[1]
    assert [len(tokens) for tokens in said[1]] == [48] * 3


def test_a_cache_of_128k_tokens_has_the_bytes_that_are_quoted() -> None:
    model = model_with("cpu", "none")
    shape = model.attentions[0].shape
    for text in POLICIES:
        policy = KVCachePolicy.parse(text)
        cache = model.attentions[0].new_cache(batch=1, capacity=131072, policy=policy)
        assert cache.nbytes == 131072 * bytes_per_token(shape, policy) + residual_bytes(shape, policy)
