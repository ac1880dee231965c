"""The cost of a KV policy, measured through the decode path of a real model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sharp_model import TOKENS, sharp_model

from dba_core.errors import ConfigError, DataError
from dba_core.evaluation.metrics import FidelityAccumulator, measure_throughput, policy_fidelity
from dba_core.model.language_model import LanguageModel

pytestmark = pytest.mark.torch


FP32 = "ksem=fp32,kgeo=fp32,v=fp32"
SMALL = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=3"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return sharp_model()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_fp32_costs_exactly_nothing(model: LanguageModel, batch_size: int) -> None:
    found = policy_fidelity(model, TOKENS, context=16, policy=FP32, n_tokens=40, batch_size=batch_size)
    assert (found.delta_nll, found.kl, found.max_abs_logit, found.ppl_ratio) == (0.0, 0.0, 0.0, 1.0)
    assert found.tokens == 40


@pytest.mark.parametrize("policy", [SMALL, "ksem=nf4,kgeo=fp16,v=q8_0"])
def test_figures_equal_those_of_whole_prefills(model: LanguageModel, policy: str) -> None:
    """A whole prefill reads the cache as decoding does, so its logits give the same figures to rounding."""
    expected = FidelityAccumulator()
    with torch.no_grad():
        for start, length in ((0, 16), (16, 16), (32, 8)):
            window = torch.from_numpy(TOKENS[start : start + length + 1].astype(np.int64))[None]
            x, y = window[:, :-1], window[:, 1:]
            quantized = model(x, cache=model.new_cache(batch=1, capacity=length, policy=policy))
            expected.update(model(x), quantized, y)  # the reference has no cache at all
    found = policy_fidelity(model, TOKENS, context=16, policy=policy, n_tokens=40, batch_size=2)
    oracle = expected.result()
    assert found.tokens == oracle.tokens == 40
    assert found.kl > 1e-6
    assert found.max_abs_logit == pytest.approx(oracle.max_abs_logit, abs=1e-3)
    assert found.kl == pytest.approx(oracle.kl, rel=1e-3, abs=1e-6)
    assert found.delta_nll == pytest.approx(oracle.delta_nll, rel=1e-3, abs=1e-5)


def test_policy_and_backends_are_named(model: LanguageModel) -> None:
    found = policy_fidelity(model, TOKENS, context=16, policy=SMALL, n_tokens=16, batch_size=1)
    assert found.policy == SMALL
    cache = model.new_cache(batch=1, capacity=16, policy=SMALL)
    assert found.backend == model.attentions[0].decode_selection(cache.layers[0]).name
    assert found.reference_backend == "cpu"


def test_more_tokens_than_there_are(model: LanguageModel) -> None:
    found = policy_fidelity(model, TOKENS[:20], context=16, policy=FP32, n_tokens=4096, batch_size=8)
    assert found.tokens == 19
    with pytest.raises(DataError, match="leave nothing to predict"):
        policy_fidelity(model, TOKENS[:1], context=16, policy=FP32, n_tokens=40, batch_size=1)


def test_mode_comes_back(model: LanguageModel) -> None:
    model.train()
    policy_fidelity(model, TOKENS, context=4, policy=SMALL, n_tokens=4, batch_size=1)
    measure_throughput(model, batch=1, context=4, policy=SMALL, decode_tokens=2, repeats=1)
    assert model.training


def test_throughput_counts_every_token(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves by one second per token of a sequence, the rates are the batch size."""
    seconds = 0.0

    def count(module: object, arguments: tuple[torch.Tensor], keywords: dict[str, object]) -> None:
        nonlocal seconds
        seconds += arguments[0].shape[1]

    monkeypatch.setattr("dba_core.evaluation.metrics._now", lambda device: seconds)
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    found = measure_throughput(model, batch=3, context=16, policy=SMALL, decode_tokens=5, repeats=2)
    hook.remove()
    assert (found.prefill, found.decode) == (3.0, 3.0)
    assert seconds == 3 * (16 + 5)  # one run to warm up and two that count
    assert (found.prefill_tokens, found.decode_tokens) == (16, 5)


def test_throughput_with_the_real_clock(model: LanguageModel) -> None:
    found = measure_throughput(model, batch=2, context=8, policy=SMALL, decode_tokens=4, repeats=1)
    assert found.prefill > 0
    assert found.decode > 0


@pytest.mark.parametrize("name", ["batch", "context", "decode_tokens", "repeats"])
def test_throughput_of_nothing(model: LanguageModel, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=0 measures nothing"):
        measure_throughput(model, **{"batch": 1, "context": 4, "policy": SMALL, name: 0})
