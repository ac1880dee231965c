"""Generation with the real model: greedy tokens equal those of the forward pass without any cache."""

from __future__ import annotations

import pytest
import torch

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import GenerationConfig
from dba_core.generation import loop
from dba_core.generation.loop import generate, prefill
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices

pytestmark = pytest.mark.torch


PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [40, 39, 38], [7, 7, 7, 7, 7, 7]]
FP32 = "ksem=fp32,kgeo=fp32,v=fp32"
SMALL = "ksem=q4_0,kgeo=q8_0,v=q4_0,resid=2"
ATTENTION = {
    "decoupled": AttentionConfig(n_heads=3, sem_head_dim=4, geo_head_dim=8, v_head_dim=8),
    "gqa": AttentionConfig(mode="gqa", n_heads=4, n_kv_heads=2),
}


def build(layout: str, *, null_token: str = "none") -> LanguageModel:
    config = ModelConfig(
        vocab_size=50,
        context=12,
        n_layers=2,
        d_model=48,
        tie_embeddings=False,  # tied and enlarged, every token would predict itself
        attention=ATTENTION[layout],
        train_long_seq=LongSequenceConfig(enabled=False),
    )
    model = LanguageModel(config, plugins=PluginChoices(null_token=PluginChoice(null_token)), seed=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def greedy(model: LanguageModel, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("layout", ["decoupled", "gqa"])
@pytest.mark.parametrize("null_token", ["none", "learned"])
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_greedy_equals_the_forward_pass(
    layout: str, null_token: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_PREFILL_TOKENS", chunk)
    monkeypatch.setattr(loop, "_PREFILL_LEAST", 1)
    model = build(layout, null_token=null_token).eval()
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]  # past the context of 12
    assert len({tuple(row) for row in expected}) == len(PROMPTS)
    settings = GenerationConfig(max_new_tokens=12, temperature=0, top_p=None)
    assert generate(model, PROMPTS, settings, kv_policy=FP32) == expected


@pytest.mark.parametrize("policy", [FP32, SMALL])
def test_a_batch_gives_what_single_prompts_give(policy: str) -> None:
    # In float64: products of one row and of four differ in the last bit of float32, and a value between two
    # codes of the cache then rounds to either.
    model = build("decoupled").double()
    settings = GenerationConfig(max_new_tokens=16, temperature=1.0, top_k=20)
    batch = generate(model, PROMPTS, settings, kv_policy=policy, seed=9)
    assert batch == [generate(model, [prompt], settings, kv_policy=policy, seed=9)[0] for prompt in PROMPTS]
    assert len({tuple(row) for row in batch}) == len(PROMPTS)


@pytest.mark.parametrize("policy", [FP32, SMALL])
def test_prefill_in_chunks_equals_whole_prefill(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("decoupled").eval()
    logits = []
    for chunk in (512, 3, 1):
        monkeypatch.setattr(loop, "_PREFILL_TOKENS", chunk)
        monkeypatch.setattr(loop, "_PREFILL_LEAST", 1)
        cache = model.new_cache(batch=len(PROMPTS), capacity=11, policy=policy, rollback=0)
        with torch.no_grad():
            logits.append(prefill(model, PROMPTS, cache))
        assert cache.lengths == tuple(map(len, PROMPTS))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)


def test_the_policy_reaches_the_cache() -> None:
    model = build("decoupled")
    settings = GenerationConfig(max_new_tokens=40, temperature=0, top_p=None)
    results = {
        tuple(generate(model, [[1, 2, 3]], settings, kv_policy=p)[0])
        for p in (FP32, "ksem=q4_0,kgeo=q4_0,v=q4_0")
    }
    assert len(results) == 2
