"""The checkpoint of a run: weights, moments and generators come back to the bit, into the same model only."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from tiny_run import build, load_weights, tiny_config

from dba_core.errors import CheckpointError
from dba_core.model.language_model import LanguageModel
from dba_core.training.checkpoint import read_checkpoint, write_checkpoint
from dba_core.training.distributed import World
from dba_core.training.session import (
    collect_random_states,
    optimizer_tensors,
    restore_optimizer,
    restore_random_states,
)
from dba_core.training.step import build_optimizer

pytestmark = pytest.mark.torch


CONFIG = tiny_config()


def trained(steps: int = 3) -> tuple[LanguageModel, torch.optim.Optimizer]:
    """A model whose weights and moments are all different numbers; one parameter never had a gradient."""
    model = build(CONFIG)
    optimizer = build_optimizer(model, CONFIG.training)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in list(model.parameters())[1:]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def save(root: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    write_checkpoint(
        root,
        step=3,
        tensors={
            "model": model.state_dict(),
            "optimizer": optimizer_tensors(model, optimizer),
            "random": collect_random_states(World()),
        },
        state={"step": 3, "best_loss": 2.25, "sampler": {"position": 3}},
        pointers=("best", "last"),
    )


def test_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path, model, optimizer)
    other = build(attrs.evolve(CONFIG, seed=99))
    stored = load_weights(other, tmp_path, "last")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert stored.state["best_loss"] == 2.25
    assert stored.state["sampler"] == {"position": 3}
    assert load_weights(other, tmp_path).path == stored.path


def test_the_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path, model, optimizer)
    other = build(CONFIG)
    load_weights(other, tmp_path)
    fresh = build_optimizer(other, CONFIG.training)
    restore_optimizer(other, fresh, read_checkpoint(tmp_path, "last"))
    assert next(iter(other.parameters())) not in fresh.state
    for one, two in ((model, optimizer), (other, fresh)):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for key in ("exp_avg", "exp_avg_sq", "step"):
        last = [
            two.state[list(one.parameters())[-1]][key] for one, two in ((model, optimizer), (other, fresh))
        ]
        assert torch.equal(*last)


def test_the_generator_goes_on(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.rand(7)
        save(tmp_path, *trained())
        expected = torch.rand(3)
        torch.manual_seed(6)
        restore_random_states(World(), read_checkpoint(tmp_path, "last"))
        assert torch.equal(torch.rand(3), expected)


def test_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path, *trained())
    wider = attrs.evolve(CONFIG, model=attrs.evolve(CONFIG.model, d_ff=32, n_layers=3))
    other = build(wider)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another model") as caught:
        load_weights(other, tmp_path)
    assert "blocks.2" in str(caught.value)
    assert "is missing" in str(caught.value)
    assert "more. Build" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_shape_that_differs_is_named(tmp_path: Path) -> None:
    save(tmp_path, *trained())
    wider = build(attrs.evolve(CONFIG, model=attrs.evolve(CONFIG.model, vocab_size=300)))
    with pytest.raises(
        CheckpointError, match=r"tok_emb.weight has shape \(256, 16\), the model's is \(300, 16\)"
    ):
        load_weights(wider, tmp_path)


def test_a_model_with_fewer_parts_is_refused(tmp_path: Path) -> None:
    save(tmp_path, *trained())
    small = build(attrs.evolve(CONFIG, model=attrs.evolve(CONFIG.model, n_layers=1)))
    with pytest.raises(CheckpointError, match=r"blocks\.1\..* is unknown to the model"):
        load_weights(small, tmp_path)
