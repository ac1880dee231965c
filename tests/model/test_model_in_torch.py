"""The model among torch's own tools and wrong arguments: meta, copies, compile, and what each error names."""

from __future__ import annotations

import copy
import io
import pickle

import attrs
import pytest
import torch

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import GenerationConfig
from dba_core.errors import CacheError, DataError
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel

pytestmark = pytest.mark.torch

POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4"
CONFIG = ModelConfig(
    vocab_size=31, context=32, n_layers=2, d_model=32, attention=AttentionConfig(n_heads=4, n_kv_heads=2)
)


def some_tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(31, (2, length), generator=torch.Generator().manual_seed(5))


def fed(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    cache = model.new_cache(batch=2, capacity=tokens.shape[1], policy=POLICY)
    return torch.cat([model(part, cache=cache) for part in tokens.split([5, 1, 1, 2], dim=1)], dim=1)


@pytest.mark.parametrize("embed_dim", [None, 16])
def test_a_model_on_meta_gives_shapes_and_one_built_there_takes_weights(embed_dim: int | None) -> None:
    config = attrs.evolve(CONFIG, embed_dim=embed_dim, tie_embeddings=embed_dim is None)
    real = LanguageModel(config, seed=3)
    with torch.device("meta"):
        built = LanguageModel(config, seed=3)
    for model in (copy.deepcopy(real).to("meta"), LanguageModel(config, device="meta"), built):
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model(some_tokens().to("meta")).shape == (2, 9, 31)
        with pytest.raises(CacheError, match="device of the cache is 'meta'"):
            model.new_cache(batch=1, capacity=4, policy=POLICY)
    built.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(built.eval()(some_tokens()), real.eval()(some_tokens()))
    assert torch.equal(fed(built, some_tokens()), fed(real, some_tokens()))


def test_a_model_that_has_generated_is_copied_pickled_and_saved() -> None:
    model = LanguageModel(CONFIG, seed=3).eval()
    config = GenerationConfig(max_new_tokens=6, temperature=0.0)
    expected = generate(model, [[1, 2, 3], [4]], config, kv_policy=POLICY)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for other in others:
        assert generate(other, [[1, 2, 3], [4]], config, kv_policy=POLICY) == expected


def test_a_copied_cache_goes_its_own_way() -> None:
    model, tokens = LanguageModel(CONFIG, seed=3).eval(), some_tokens()
    cache = model.new_cache(batch=2, capacity=9, policy=POLICY)
    model(tokens[:, :6], cache=cache)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(model(tokens[:, 6:], cache=other), fed_on(model, cache, tokens[:, 6:]))
        assert (other.lengths, cache.lengths) == ((9, 9), (6, 6))


def fed_on(model: LanguageModel, cache, tokens: torch.Tensor) -> torch.Tensor:
    """What comes next, and the cache as it was."""
    before = cache.lengths
    out = model(tokens, cache=cache)
    cache.truncate(before)
    return out


def test_compiled_with_a_cache_gives_the_same_or_says_why_not() -> None:
    model, tokens = LanguageModel(CONFIG, seed=3).eval(), some_tokens()
    assert torch.equal(fed_compiled(model, tokens, fullgraph=False), fed(model, tokens))
    torch._dynamo.reset()  # or what was compiled without fullgraph serves
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a pass with a KV cache is not compiled"):
        fed_compiled(model, tokens, fullgraph=True)
    torch._dynamo.reset()


def fed_compiled(model: LanguageModel, tokens: torch.Tensor, *, fullgraph: bool) -> torch.Tensor:
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    cache = model.new_cache(batch=2, capacity=9, policy=POLICY)
    return torch.cat([compiled(part, cache=cache) for part in tokens.split([5, 1, 1, 2], dim=1)], dim=1)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([[1, 2]], "tokens are a list; give a tensor of integers"),
        (torch.ones(1, 3), r"tokens are torch.float32 of shape \(1, 3\); give integers"),
        (torch.ones(1, 3, dtype=torch.bool), "tokens are torch.bool"),
        (torch.ones(3, dtype=torch.int64), r"of shape \(3,\)"),
        (torch.tensor([[1, -1]]), "token -1 is out of the vocabulary"),
        (torch.tensor([[1, 31]]), "token 31 is out of the vocabulary"),
        (torch.ones(1, 3, dtype=torch.int64, device="meta"), "tokens are on meta, the model on cpu"),
    ],
)
def test_wrong_tokens_are_named_with_and_without_a_cache(tokens, text: str) -> None:
    model = LanguageModel(CONFIG)
    cache = model.new_cache(batch=1, capacity=4, policy=POLICY)
    for given in (None, cache):
        with pytest.raises(DataError, match=text):
            model(tokens, cache=given)
    assert cache.lengths == (0,)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_every_integer_will_do(dtype: torch.dtype) -> None:
    model = LanguageModel(CONFIG)
    assert torch.equal(model(some_tokens().to(dtype)), model(some_tokens()))


def test_wrong_caches_and_counts_are_named() -> None:
    model, tokens = LanguageModel(CONFIG), some_tokens()
    cache = model.new_cache(batch=2, capacity=9, policy=POLICY)
    with pytest.raises(CacheError, match="cache is a LayerCache; give what new_cache of this model makes"):
        model(tokens, cache=cache.layers[0])
    with pytest.raises(CacheError, match=r"counts=\[1, 2\] without a cache"):
        model(tokens, counts=[1, 2])
    with pytest.raises(CacheError, match="batch of the cache is -2; allowed: whole numbers from 1 on"):
        model.new_cache(batch=-2, capacity=9, policy=POLICY)
    with pytest.raises(CacheError, match="x has batch 1, the cache 2"):
        model(tokens[:1], cache=cache)
    assert cache.lengths == (0, 0)
