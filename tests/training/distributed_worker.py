"""One process of a distributed test: does the cases in turn and writes what it saw.

python distributed_worker.py FOLDER CASE [CASE ...]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from tiny_run import build, events_of, run, tiny_config, without_dropout
from torch import Tensor, nn

from dba_core.errors import TrainingError
from dba_core.training.distributed import World
from dba_core.training.loop import StepFinished
from dba_core.training.step import TrainingStep, build_optimizer

CONFIG = tiny_config(steps=8, batch_size=8, eval_every=4, log_every=1)


def train(folder: Path, world: World, *, dropout: bool = False, **given: Any) -> dict[str, Any]:
    """A run whose processes start from different weights: the main one's must win."""
    config = CONFIG if dropout else without_dropout(CONFIG)
    model = build(attrs.evolve(config, seed=config.seed + world.rank))
    trained = run(folder, config, world=world, model=model, **given)
    return {
        "losses": [event.loss for event in events_of(trained, StepFinished)],
        "weights": [p.detach().double().abs().sum().item() for p in trained.model.parameters()],
        "best_loss": trained.result.progress.best_loss,
        "last_step": trained.result.progress.step,
        "interrupted": trained.result.interrupted,
    }


def stop_at_four(event: object) -> None:
    if isinstance(event, StepFinished) and event.step == 4:
        os.kill(os.getpid(), signal.SIGTERM)


def partial(folder: Path, world: World) -> dict[str, Any]:
    """One step in which a parameter has a gradient on the main process only, and another one nowhere."""
    model = build(without_dropout(CONFIG))
    model.some = nn.Parameter(torch.ones(3, 3))
    model.never = nn.Parameter(torch.ones(3, 3))
    loss = model.loss

    def with_some(tokens: Tensor, targets: Tensor) -> Tensor:
        return loss(tokens, targets) + (model.some.sum() if world.is_main else 0.0)

    model.loss = with_some
    step = TrainingStep(model, build_optimizer(model, CONFIG.training), CONFIG, world)
    tokens = torch.arange(4 * 17).view(4, 17) % 256
    step.gradients(tokens[:, :-1], tokens[:, 1:])
    told = {"some": model.some.grad.flatten().tolist(), "never": model.never.grad is None}
    step.apply(lr=0.1)
    return {**told, "never_after": model.never.flatten().tolist()}


def collectives(folder: Path, world: World) -> dict[str, Any]:
    """Means over several buckets and types, sums, what the main process tells, everybody's numbers."""
    sizes = (3, 7_000_000, 1)
    gradients = [torch.full((n,), float(world.rank + i)) for i, n in enumerate(sizes)]
    gradients.append(torch.full((2, 2), 2.0 * world.rank, dtype=torch.float64))
    world.all_reduce_mean(gradients)
    told = torch.tensor([world.rank + 5])
    world.broadcast([told])
    world.barrier()
    return {
        "means": [[g.min().item(), g.max().item()] for g in gradients],
        "sum": world.sum(torch.tensor([1.0, world.rank])).tolist(),
        "told": told.item(),
        "gathered": [t.tolist() for t in world.gather(torch.tensor([world.rank], dtype=torch.uint8))],
    }


def fail(folder: Path, world: World) -> dict[str, Any]:
    if world.rank == 1:
        raise TrainingError("the second process has had enough")
    return train(folder, world)


CASES: dict[str, Callable[[Path, World], dict[str, Any]]] = {
    "train": train,
    "straight": lambda folder, world: train(folder, world, dropout=True),
    "stop": lambda folder, world: train(folder, world, dropout=True, on_event=stop_at_four),
    "resume": lambda folder, world: train(folder.with_name("stop"), world, dropout=True, resume=True),
    "partial": partial,
    "collectives": collectives,
    "fail": fail,
}


def main(folder: Path, cases: list[str]) -> None:
    with World.from_environment("cpu", timeout_seconds=60) as world:
        for case in cases:
            told = CASES[case](folder / case, world)
            (folder / f"{case}-{world.rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
