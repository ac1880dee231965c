"""One optimizer step: accumulated gradients are those of the whole batch, clipping acts on the whole norm."""

from __future__ import annotations

import attrs
import pytest
import torch
from tiny_run import build, tiny_config, without_dropout

from dba_core.errors import DataError
from dba_core.model.language_model import LanguageModel
from dba_core.training.distributed import World
from dba_core.training.step import TrainingStep, autocast, build_optimizer

pytestmark = pytest.mark.torch


def some_batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def make(dtype: str = "float32", **training: object) -> tuple[LanguageModel, TrainingStep]:
    config = attrs.evolve(without_dropout(tiny_config(**training)), dtype=dtype)
    model = build(config)
    return model, TrainingStep(model, build_optimizer(model, config.training), config, World())


@pytest.mark.parametrize("grad_accum", [1, 2, 4])
def test_gradients_and_loss_are_those_of_the_whole_batch(grad_accum: int) -> None:
    model, step = make(grad_accum=grad_accum)
    found = step.gradients(*some_batch())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    twin = build(without_dropout(tiny_config()))
    loss = twin.loss(*some_batch())
    loss.backward()
    expected = [p.grad for p in twin.parameters() if p.grad is not None]
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    norm = sum(g.double().square().sum() for g in expected).sqrt().item()
    assert found.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_clipping_scales_the_whole_gradient_to_its_limit(limit: float) -> None:
    model, step = make(grad_clip=limit)
    found = step.gradients(*some_batch())
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    seen: list[torch.Tensor] = []

    def look(*_: object) -> None:
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))

    step.optimizer.register_step_pre_hook(look)
    step.apply(lr=0.1)
    scale = limit / found.grad_norm if limit == 0.01 else 1.0
    torch.testing.assert_close(seen[0], before * scale, rtol=1e-4, atol=1e-8)
    assert all(p.grad is None for p in model.parameters())


def test_the_learning_rate_of_the_step_is_used() -> None:
    model, step = make(weight_decay=0.0)
    before = model.ln_f.weight.detach().clone()
    step.gradients(*some_batch())
    step.apply(lr=0.25)
    moved = (model.ln_f.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25), rtol=1e-3, atol=1e-3)  # Adam's first step


def test_a_wish_to_stop_comes_back() -> None:
    _, step = make()
    assert step.gradients(*some_batch(), stop=True).stop
    assert not step.gradients(*some_batch()).stop


def test_tokens_out_of_the_vocabulary_never_reach_the_model() -> None:
    model, step = make()
    tokens, targets = some_batch()
    with pytest.raises(DataError, match="token 256 is out of the vocabulary"):
        step.gradients(tokens + 256 * (tokens == tokens[0, 0]) - tokens * (tokens == tokens[0, 0]), targets)
    assert all(p.grad is None for p in model.parameters())


def test_bfloat16_is_autocast_over_float32_weights() -> None:
    exact, half = make()[1], make(dtype="bfloat16")[1]
    a, b = exact.gradients(*some_batch()), half.gradients(*some_batch())
    assert a.loss != b.loss
    assert b.loss == pytest.approx(a.loss, rel=1e-2)
    assert b.grad_norm == pytest.approx(a.grad_norm, rel=0.1)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    with autocast(torch.device("cpu"), "bfloat16"):
        assert half.model(some_batch()[0]).dtype == torch.bfloat16
        assert half.model.loss(*some_batch()).dtype == torch.float32
    with autocast(torch.device("cpu"), "float32"):
        assert half.model(some_batch()[0]).dtype == torch.float32


@pytest.mark.parametrize("asked", [False, True])
def test_compile_is_used_when_asked_for(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def record(function: object) -> object:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    model, step = make(compile=asked)
    step.gradients(*some_batch())
    assert compiled == ([model.loss] if asked else [])
