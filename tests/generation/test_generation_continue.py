"""`generate` with a cache: the prompts continue what it holds, to the tokens of one call with everything."""

from __future__ import annotations

import pytest

from dba_core.config.run import GenerationConfig

pytestmark = pytest.mark.torch

GREEDY = GenerationConfig(max_new_tokens=6, temperature=0.0)
FP32 = "ksem=fp32,kgeo=fp32,v=fp32"


@pytest.fixture(scope="module")
def model():
    from dba_core.config.attention import AttentionConfig
    from dba_core.config.model import ModelConfig
    from dba_core.model.language_model import LanguageModel

    config = ModelConfig(vocab_size=31, n_layers=2, d_model=32, attention=AttentionConfig(n_heads=4))
    return LanguageModel(config, seed=3).eval()


def test_a_cached_prefix_and_its_continuation_give_the_tokens_of_one_call(model):
    from dba_core.generation.loop import generate, prefill

    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    whole = generate(model, prompts, GREEDY, kv_policy=FP32)
    cache = model.new_cache(batch=2, capacity=5 + 6, policy=FP32)
    prefill(model, [prompt[:-1] for prompt in prompts], cache)
    assert generate(model, [prompt[-1:] for prompt in prompts], GREEDY, cache=cache) == whole
    assert cache.lengths == (5 + 5, 3 + 5)  # the last new token is not cached


def test_a_cache_can_be_continued_again_and_again(model):
    from dba_core.generation.loop import generate, prefill

    cache = model.new_cache(batch=1, capacity=16, policy="ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=4")
    prefill(model, [[7, 8, 9]], cache)
    first = generate(model, [[1]], GREEDY, cache=cache)
    cache.truncate(3)
    assert generate(model, [[1]], GREEDY, cache=cache) == first


def test_a_policy_beside_a_cache_is_refused(model):
    from dba_core.errors import ConfigError
    from dba_core.generation.loop import generate

    cache = model.new_cache(batch=1, capacity=4, policy=FP32)
    with pytest.raises(ConfigError, match=r"either kv_policy=, for a new cache, or cache=; give one of them"):
        generate(model, [[1]], GREEDY, kv_policy=FP32, cache=cache)


def test_a_cache_that_is_too_small_is_refused(model):
    from dba_core.errors import CacheError
    from dba_core.generation.loop import generate

    with pytest.raises(CacheError, match="capacity"):
        generate(model, [[1]], GREEDY, cache=model.new_cache(batch=1, capacity=4, policy=FP32))
