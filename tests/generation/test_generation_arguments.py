"""`generate` from Python: what may be left out, what prompts may be, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generation_toy import VOCAB, ToyModel

from dba_core import GenerationConfig, generate
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import ConfigError, DataError, LongPromptWarning

pytestmark = pytest.mark.torch

GREEDY = GenerationConfig(max_new_tokens=4, temperature=0.0)
PROMPTS = [[1, 2, 3], [4]]


def test_model_and_prompts_are_enough() -> None:
    model = ToyModel()
    defaults = GenerationConfig(max_new_tokens=200, temperature=0.8, top_p=0.95)
    assert generate(model, PROMPTS) == generate(model, PROMPTS, defaults, seed=0)
    assert {cache.policy for cache in model.caches} == {KVCachePolicy.parse("ksem=fp16,kgeo=fp16,v=fp16")}
    assert [len(row) for row in generate(model, PROMPTS)] == [200, 200]


@pytest.mark.parametrize(
    "prompts",
    [
        ((1, 2, 3), range(4, 5)),
        [torch.tensor([1, 2, 3]), torch.tensor([4], dtype=torch.int32)],
        [np.array([1, 2, 3], dtype=np.uint16), [np.int64(4)]],
    ],
)
def test_prompts_may_be_lists_arrays_and_tensors(prompts: object) -> None:
    assert generate(ToyModel(), prompts, GREEDY) == generate(ToyModel(), PROMPTS, GREEDY)


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_a_table_holds_one_prompt_in_each_row(make) -> None:
    rows = [[1, 2], [3, 4]]
    assert generate(ToyModel(), make(rows), GREEDY) == generate(ToyModel(), rows, GREEDY)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a text", r"prompts='a text' is a text, and the model takes tokens: call run\.generate\(text\)"),
        (["a text"], r"prompt 0 is the text 'a text'.*run\.generate"),
        ([[1, 2], "ab"], "prompt 1 is the text 'ab'"),
        ([1, 2], r"prompt 0 is 1 \(int\); give a list of prompts, each a list of tokens"),
        (7, r"prompts is 7 \(int\)"),
        (None, r"prompts is None \(NoneType\)"),
        ({1: [2]}, "prompts is a dict"),
        (torch.tensor(3), r"prompts is a Tensor of shape \[\]"),
        ([[1], None], r"prompt 1 is None"),
        ([[1, 2.0]], r"prompt 0 holds 2\.0 \(float\) at position 1; tokens are whole numbers, 0 to 60"),
        (torch.tensor([[1.0]]), r"prompt 0 holds 1\.0 \(float\) at position 0"),
        ([[True]], r"prompt 0 holds True \(bool\)"),
        ([[1, "a"]], "prompt 0 holds a str at position 1"),
        ([[1, [2]]], "prompt 0 holds a list at position 1"),
        ([torch.tensor([[1, 2]])], r"prompt 0 holds a Tensor of shape \[2\] at position 0"),
        ([[]], "prompt 0 is empty; give at least one token"),
        ([[1, VOCAB]], f"prompt 0 holds token {VOCAB} at position 1; allowed: 0 to {VOCAB - 1}"),
    ],
)
def test_prompts_that_are_none_are_named(prompts: object, message: str) -> None:
    model = ToyModel()
    with pytest.raises(DataError, match=rf"generation\.prompt: {message}"):
        generate(model, prompts, GREEDY)
    assert model.calls == []


def test_other_arguments_that_are_wrong_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model is a str; give a LanguageModel.* or call run\.generate"):
        generate("runs/latest", PROMPTS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"config=20 is a int; give GenerationConfig\(max_new_tokens=20\)"):
        generate(ToyModel(), PROMPTS, 20)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_new_tokens: -1"):
        GenerationConfig(max_new_tokens=-1)
    assert generate(ToyModel(), PROMPTS, GenerationConfig(max_new_tokens=0)) == [[], []]


def test_a_prompt_beyond_the_context_is_said_and_continued() -> None:
    model = ToyModel()
    whole = [1] * model.config.context
    generate(model, [whole], GREEDY)  # as long as the context: nothing is said
    with pytest.warns(
        LongPromptWarning, match=r"prompt 1 has 65 tokens, more than the context of 64"
    ) as said:
        (_, new) = generate(model, [[1], [*whole, 2]], GREEDY)
    assert said[0].filename == __file__
    assert len(new) == 4
