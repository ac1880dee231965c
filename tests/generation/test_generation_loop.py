"""Generation against an oracle that recomputes every step from the whole sequence; ragged batches, stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generation_toy import VOCAB, ToyModel, oracle_logits

from dba_core.config.run import GenerationConfig
from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.tokenizers import ByteTokenizer, with_special
from dba_core.errors import ConfigError, DataError
from dba_core.generation import loop
from dba_core.generation.loop import generate
from dba_core.generation.sampling import RowStreams

pytestmark = pytest.mark.torch


POLICY = "ksem=fp16,kgeo=fp16,v=fp16"
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 10, 0], [1, 1]]


def config(**changes: object) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 12, "temperature": 0.0, "top_p": None, **changes})


def greedy_oracle(model: ToyModel, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(np.argmax(oracle_logits(model, tokens))))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 2, 3, 512])
def test_greedy_equals_the_oracle_in_any_chunking(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_PREFILL_TOKENS", chunk)
    monkeypatch.setattr(loop, "_PREFILL_LEAST", 1)
    model = ToyModel()
    expected = [greedy_oracle(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(row) for row in expected}) == len(PROMPTS)  # the oracle can tell rows apart
    assert generate(model, PROMPTS, config(), kv_policy=POLICY) == expected


def test_sampling_equals_the_oracle_with_the_same_numbers() -> None:
    model = ToyModel()
    streams = RowStreams(7, PROMPTS)
    expected = [list(prompt) for prompt in PROMPTS]
    for _ in range(12):
        for tokens, u in zip(expected, streams.next().tolist(), strict=True):
            scaled = oracle_logits(model, tokens) / 0.7
            p = np.exp(scaled - scaled.max())
            p[np.argsort(-p)[4:]] = 0
            tokens.append(int(np.searchsorted(np.cumsum(p), u * p.sum(), side="right")))
    result = generate(model, PROMPTS, config(temperature=0.7, top_k=4), kv_policy=POLICY, seed=7)
    assert result == [tokens[len(prompt) :] for tokens, prompt in zip(expected, PROMPTS, strict=True)]


def test_a_prompt_in_a_batch_gives_what_it_gives_alone() -> None:
    model, settings = ToyModel(), config(temperature=1.0)
    batch = generate(model, PROMPTS, settings, kv_policy=POLICY, seed=3)
    for prompt, row in zip(PROMPTS, batch, strict=True):
        assert generate(model, [prompt], settings, kv_policy=POLICY, seed=3) == [row]
    assert generate(model, PROMPTS[::-1], settings, kv_policy=POLICY, seed=3) == batch[::-1]


def test_equal_prompts_differ_and_seeds_decide() -> None:
    model, settings = ToyModel(), config(temperature=1.0)
    first, second = generate(model, [[1], [1]], settings, kv_policy=POLICY, seed=3)
    assert first != second
    assert generate(model, [[1], [1]], settings, kv_policy=POLICY, seed=3) == [first, second]
    assert generate(model, [[1]], settings, kv_policy=POLICY, seed=4) != [first]
    own = config(temperature=1.0, seed=3)  # the configuration's seed comes before the run's
    assert generate(model, [[1]], own, kv_policy=POLICY, seed=4) == [first]


def test_capacity_and_calls() -> None:
    model = ToyModel()
    generate(model, PROMPTS, config(), kv_policy=POLICY)
    (cache,) = model.caches
    assert cache.capacity == 7 + 12
    assert cache.policy == POLICY
    assert model.calls == [(7, (1, 7, 3, 2))] + [(1, None)] * 11  # the last token is not fed back
    assert cache.lengths == [1 + 11, 7 + 11, 3 + 11, 2 + 11]
    assert cache.checked_values == 1


def test_equal_lengths_need_no_counts() -> None:
    model = ToyModel()
    generate(model, [[1, 2], [3, 4]], config(max_new_tokens=1), kv_policy=POLICY)
    assert model.calls == [(2, None)]


@pytest.mark.parametrize("prompts", [PROMPTS, []])
def test_no_new_tokens_runs_nothing(prompts: list[list[int]]) -> None:
    model = ToyModel()
    assert generate(model, prompts, config(max_new_tokens=0), kv_policy=POLICY) == [[] for _ in prompts]
    assert model.calls == []


def test_no_prompts_give_nothing() -> None:
    assert generate(ToyModel(), [], config(), kv_policy=POLICY) == []


def test_tokens_arrive_in_order_and_are_those_of_the_result() -> None:
    seen: list[tuple[int, int]] = []
    result = generate(
        ToyModel(), PROMPTS, config(), kv_policy=POLICY, on_token=lambda row, token: seen.append((row, token))
    )
    assert seen == [(row, result[row][step]) for step in range(12) for row in range(len(PROMPTS))]


def test_stop_texts_end_rows_one_by_one_and_then_all() -> None:
    model = ToyModel(vocab_size=128)
    tokenizer = ByteTokenizer()
    free = generate(model, PROMPTS, config(max_new_tokens=20), kv_policy=POLICY)
    stops = tuple(
        dict.fromkeys(tokenizer.decode(row[at : at + 2]) for row, at in zip(free, (2, 5), strict=False))
    )
    expected = []
    for row in free:
        texts = [tokenizer.decode(row[:n]) for n in range(21)]
        ends = [n for n in range(21) if any(stop in texts[n] for stop in stops)]
        expected.append(row[: ends[0] - 2] if ends else row)
    seen: dict[int, list[int]] = {row: [] for row in range(4)}
    model.calls.clear()
    result = generate(
        model,
        PROMPTS,
        config(max_new_tokens=20, stop=stops),
        kv_policy=POLICY,
        tokenizer=tokenizer,
        on_token=lambda row, token: seen[row].append(token),
    )
    assert result == expected
    assert list(seen.values()) == expected
    assert len(result[0]) < 20
    assert len(result[1]) < 20
    model.calls.clear()
    generate(model, PROMPTS[:1], config(max_new_tokens=20, stop=stops), kv_policy=POLICY, tokenizer=tokenizer)
    assert len(model.calls) == len(expected[0]) + 2  # it ends with the token that completes the stop text


def test_end_of_text_tokens_end_rows_and_stay_out() -> None:
    """Tokens that a stop text held back come out when the row ends; `()` goes on past the end."""
    model = ToyModel(vocab_size=128)
    free = generate(model, PROMPTS, config(max_new_tokens=20), kv_policy=POLICY)
    ends = (free[0][3], free[1][7])
    expected = [row[: next((n for n, token in enumerate(row) if token in ends), 20)] for row in free]
    assert len(expected[0]) <= 3
    alone = ByteTokenizer()
    tokenizer = with_special(alone, SpecialTokens(eos=ends))
    held = "".join(map(chr, expected[0])) + "never"
    seen: dict[int, list[int]] = {row: [] for row in range(4)}
    for settings, used in (
        (config(max_new_tokens=20), {"tokenizer": tokenizer}),
        (config(max_new_tokens=20), {"stop_tokens": ends}),
        (config(max_new_tokens=20, stop=(held,)), {"tokenizer": tokenizer}),
    ):
        for row in seen.values():
            row.clear()
        found = generate(
            model, PROMPTS, settings, kv_policy=POLICY,
            on_token=lambda row, token: seen[row].append(token), **used,
        )  # fmt: skip
        assert found == list(seen.values()) == expected
    settings = config(max_new_tokens=20)
    assert generate(model, PROMPTS, settings, kv_policy=POLICY, tokenizer=tokenizer, stop_tokens=()) == free
    assert generate(model, PROMPTS, settings, kv_policy=POLICY, tokenizer=alone) == free


def test_modes_come_back_also_after_an_error() -> None:
    model = ToyModel()
    model.train()
    model.inner.eval()
    generate(model, PROMPTS, config(), kv_policy=POLICY)
    assert model.training
    assert not model.inner.training

    def stop(row: int, token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, config(), kv_policy=POLICY, on_token=stop)
    assert model.training
    assert not model.inner.training
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_generating() -> None:
    model = ToyModel()
    model.train()
    assert generate(model, [[1]], config(), kv_policy=POLICY) == [greedy_oracle(model, [1], 12)]


@pytest.mark.parametrize("max_new_tokens", [0, 3])
def test_wrong_prompts(max_new_tokens: int) -> None:
    settings = config(max_new_tokens=max_new_tokens)
    with pytest.raises(DataError, match=r"generation\.prompt: prompt 1 is empty; give at least one token"):
        generate(ToyModel(), [[1], []], settings, kv_policy=POLICY)
    with pytest.raises(
        DataError, match=rf"prompt 0 holds token {VOCAB} at position 1; allowed: 0 to {VOCAB - 1}"
    ):
        generate(ToyModel(), [[1, VOCAB]], settings, kv_policy=POLICY)
    with pytest.raises(DataError, match="prompt 0 holds token -3 at position 0"):
        generate(ToyModel(), [[-3, 1]], settings, kv_policy=POLICY)


def test_stop_texts_need_a_tokenizer_and_a_text() -> None:
    with pytest.raises(ConfigError, match=r"generation\.stop: stop texts \('a',\) need the tokenizer"):
        generate(ToyModel(), [[1]], config(stop=("a",)), kv_policy=POLICY)
    with pytest.raises(ConfigError, match="an empty stop text"):
        generate(ToyModel(), [[1]], config(stop=("",)), kv_policy=POLICY, tokenizer=ByteTokenizer())


def test_a_prompt_costs_the_logits_of_its_last_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = ToyModel(), []
    make = model.logits
    monkeypatch.setattr(
        model, "logits", lambda states: rows.append(states.shape[:-1].numel()) or make(states)
    )
    generate(model, PROMPTS, config(max_new_tokens=3), kv_policy=POLICY)
    assert rows == [len(PROMPTS)] * 3
